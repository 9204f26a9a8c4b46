# Two commands: `make demo` and `make test`. Both need only Python 3.11+ and make.
PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= 2

# empty: modules are compiled once and kept, whatever the shell says; not anew by each process that a test starts
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test lint check format bench docs oldest clean

demo: .venv/.installed
	$(BIN)/flatminima demo --output flatminima-demo

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadgroup --no-loadscope-reorder

test: lint
	$(PYTEST)

lint: .venv/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# lint, types and what is quick of the tests: under two minutes; `make test` is the whole
QUICK := tests/bounds tests/data tests/models tests/ranking tests/report tests/track tests/test_*.py
check: lint
	$(PYTEST) -m "not slow" $(QUICK)

format: .venv/.tested
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/.tested
	$(BIN)/pip install -q --no-deps -r requirements-peers.txt
	for f in benchmarks/bench_*.py; do $(BIN)/python $$f || exit 1; done

# the documentation site, in a folder "site"
docs:
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install -q mkdocs-material 'mkdocstrings[python]'
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict

# the numerical core on the oldest torch of the declared range; its wheel brings gigabytes of CUDA
oldest:
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install -q 'torch==2.6.0'
	.venv-oldest/bin/pip install -q '.[test]' 'torch==2.6.0'
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -q -n $(WORKERS) --dist loadgroup -p no:cacheprovider \
	  tests/bounds tests/contracts tests/measures tests/statistics tests/optim tests/training tests/test_*.py

# torch first, under the constraints file, so that nothing else chooses a torch of several gigabytes
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "flatminima needs Python 3.11 or newer"'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/.tested: .venv/.installed
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-compile -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf .venv .venv-docs .venv-oldest site build dist .mypy_cache .ruff_cache
