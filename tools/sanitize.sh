#!/bin/bash
# The kernels under AddressSanitizer and UBSan: their tests, then random shapes for FUZZ_SECONDS (20) per module.
# Builds into build/sanitize and leaves the ordinary modules alone.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
PYTHON=$("$PYTHON" -c 'import sys; print(sys.executable)')
export PATH="$(dirname "$PYTHON"):$PATH"
build=$PWD/build/sanitize package=$PWD/build/sanitize/package
mkdir -p "$build"
rm -rf "$package"
cp -r src "$package"
rm -f "$package"/ellzero/kernels/*.so
cmake -S . -B "$build" -G Ninja -DPython_EXECUTABLE="$PYTHON" -DCMAKE_BUILD_TYPE=Debug -DELLZERO_SANITIZE=ON \
    -DELLZERO_OUTPUT="$package/ellzero/kernels" >"$build/configure.log" || { cat "$build/configure.log"; exit 1; }
cmake --build "$build"

# Without site (-S), so that the package comes from the folder above and not from an editable install.
site=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
export PYTHONPATH="$package:$site"
compiler=$(sed -n 's/^CMAKE_CXX_COMPILER:[A-Z]*=//p' "$build/CMakeCache.txt")
preload="$("$compiler" -print-file-name=libasan.so) $("$compiler" -print-file-name=libubsan.so)"
preload="$preload $("$compiler" -print-file-name=libstdc++.so)"
# CPython keeps objects for its whole life, which is no leak of ours. A finding ends the process.
sanitized() {
    LD_PRELOAD="$preload" ASAN_OPTIONS=detect_leaks=0:halt_on_error=1 \
        UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 PYTHONMALLOC=malloc OMP_NUM_THREADS=2 "$PYTHON" -S "$@"
}
sanitized -m pytest -p no:cacheprovider -m "not slow" tests/kernels \
    --ignore=tests/kernels/test_torch_ops.py --deselect tests/kernels/test_dispatch.py

for isa in $(sanitized -c 'from ellzero import show_config; print(*show_config()["available"])'); do
    ELLZERO_ISA=$isa sanitized - "${FUZZ_SECONDS:-20}" <<'PYTHON'
import sys
import time

import numpy as np

from ellzero import kernels
from ellzero.kernels import reference
from ellzero.kernels.nm import nm_product, pack_places
from ellzero.kernels.sparse import Pattern

assert "build/sanitize" in kernels.native.__file__
end, count, draw = time.monotonic() + float(sys.argv[1]), 0, np.random.default_rng()
while time.monotonic() < end:
    rows, n = int(draw.integers(0, 9)), int(draw.integers(0, 4 ** draw.integers(1, 8)))
    k, levels = int(draw.integers(0, n + 1)), 10 ** int(draw.integers(0, 9))
    x = (draw.integers(-levels, levels, (rows, n)) / levels).astype(draw.choice([np.float32, np.float64]))
    x[draw.random(x.shape) < draw.choice([0, 0, 0.5])] = draw.choice([np.nan, np.inf, -np.inf])
    found = kernels.top_k(x, k, n_threads=int(draw.integers(1, 4)))
    values, indices = reference.top_k(x, k)
    assert np.array_equal(found.indices, indices), (rows, n, k, levels, x.dtype)
    assert np.array_equal(found.values, values, equal_nan=True), (rows, n, k, levels, x.dtype)
    group, rows = int(draw.choice([1, 4, 8])), int(draw.integers(0, 9))
    columns = int(draw.integers(1, draw.choice([90, 900])))  # many: taken block by block
    batch, dtype = int(draw.integers(0, 300)), draw.choice([np.float32, np.float64])
    mask = draw.random((rows, columns)) < draw.choice([0, 0.1, 0.5, 1])
    pattern = Pattern(np.concatenate([[0], np.cumsum(mask.sum(1))]), np.nonzero(mask)[1], group=group, columns=columns)
    value = draw.standard_normal((len(pattern.index), group)).astype(dtype)
    x, grad = (draw.standard_normal((n, batch)).astype(dtype) for n in (columns, pattern.rows))
    found = pattern.product(value, x, n_threads=int(draw.integers(1, 4)))
    want = pattern._reference(value, x, None, None)
    assert np.allclose(found, want, rtol=1e-3, atol=1e-3), (group, rows, columns, batch, dtype)
    pattern.values_gradient(grad, x, n_threads=int(draw.integers(1, 4)))
    m = int(draw.integers(1, 9))
    n, blocks = int(draw.integers(1, m + 1)), int(draw.integers(0, 40))
    place = np.sort(np.argsort(draw.random((rows, blocks, m)), axis=-1)[..., :n], axis=-1).reshape(rows, blocks * n)
    value, x = (draw.standard_normal(s).astype(dtype) for s in ((rows, blocks * n), (blocks * m, min(batch, 40))))
    nm_product(pack_places(place.astype(np.uint8), m), value, x, n=n, m=m)
    count += 1
print(f"{kernels.isa}: {count} random inputs, no finding")
PYTHON
done
