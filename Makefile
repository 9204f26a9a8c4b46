# Two commands: `make demo` and `make test`. Both need only Python 3.11+ and make.
PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= 2

.PHONY: demo test lint check format bench clean

demo: .venv/.installed
	$(BIN)/flatminima demo --output flatminima-demo

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile

lint: .venv/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint

format: .venv/.tested
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/.tested
	$(BIN)/pip install -q --no-deps -r requirements-peers.txt
	for f in benchmarks/bench_*.py; do $(BIN)/python $$f || exit 1; done

# torch first, under the constraints file, so that nothing else chooses a torch of several gigabytes
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "flatminima needs Python 3.11 or newer"'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/.tested: .venv/.installed
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache
