# One command each; everything happens in .venv, and a second call is quick.
PYTHON ?= python3.11
BIN := .venv/bin
NATIVE := CMakeLists.txt $(wildcard csrc/*)
PYTEST := $(BIN)/python -m pytest

.PHONY: all setup demo test claims bench docs sanitize lint format index coverage wheel clean

all: setup
	@$(BIN)/ellzero config

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install --quiet torch -c constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt scikit-build-core nanobind cmake ninja
	$(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt -e '.[dev]'
	touch $@
	@$(BIN)/ellzero config

demo: setup
	$(BIN)/python examples/demo.py

# Two processes with a thread each: small products of two processes with two threads each mostly wait for one another.
test: setup
	OMP_NUM_THREADS=1 $(PYTEST) -m "not slow" --durations=10 -n 2 --dist loadfile

claims: setup
	$(PYTEST) -m "claim or slow" --durations=20 -s

coverage: setup
	OMP_NUM_THREADS=1 $(PYTEST) -m "not slow" -n 2 --dist loadfile --cov --cov-report=term

bench: setup
	for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

docs: setup
	$(PYTEST) tests/conformance/test_docs.py

sanitize: setup
	PYTHON=$(CURDIR)/$(BIN)/python bash tools/sanitize.sh

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

index: setup
	$(BIN)/python -m ellzero.registry

wheel: setup
	$(BIN)/python -m build --wheel --outdir dist

clean:
	rm -rf build dist .venv src/ellzero/kernels/*.so
