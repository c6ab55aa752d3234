"""Shared by all tests: hypothesis settings, and no writes outside pytest's temporary folders."""

import os

from hypothesis import HealthCheck, settings

# Two busy cores: a slow example is no failure, and the same examples are drawn in every run of CI.
settings.register_profile(
    "ellzero", deadline=None, derandomize=bool(os.environ.get("CI")), suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ellzero")
