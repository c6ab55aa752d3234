"""Shared by all tests: hypothesis settings, and no writes outside pytest's temporary folders."""

import os

from hypothesis import HealthCheck, settings

# Where there is no GPU, Triton's kernels run under its interpreter, which must be asked for before it is imported.
if not os.path.exists("/dev/nvidiactl"):
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Two busy cores: a slow example is no failure, and the same examples are drawn in every run of CI.
settings.register_profile(
    "ellzero", deadline=None, derandomize=bool(os.environ.get("CI")), suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ellzero")
