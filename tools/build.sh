#!/bin/sh
# Builds the compiled kernels incrementally and puts them beside src/ellzero/kernels/__init__.py.
# PYTHON names the interpreter (default: the .venv of the checkout, else python3). Safe to call at the same time.
set -eu
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ]; then
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi
fi
PYTHON=$("$PYTHON" -c 'import sys; print(sys.executable)')
PATH="$(dirname "$PYTHON"):$PATH"
build=build/dev
mkdir -p "$build"
exec 9>build/lock
flock 9
if [ ! -f "$build/build.ninja" ]; then
    cmake -S . -B "$build" -G Ninja -DPython_EXECUTABLE="$PYTHON" -DELLZERO_OUTPUT="$PWD/src/ellzero/kernels" >"$build/configure.log" 2>&1 || {
        cat "$build/configure.log" >&2
        exit 1
    }
fi
cmake --build "$build" -- "$@"
