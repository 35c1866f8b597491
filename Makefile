# make quickstart   a real table on real bags, from nothing, in minutes
# make test         linters, types, architecture and the test suite
# make test-all     the slower checks: packaging, fuzzing, interruptions, every order of the registry
# make test-engines  a real Slurm node and two real Ray nodes on this machine, where they are installed
# make chaos        faults on purpose, in a quarter of an hour: kills, stops, full disks, changed files; ROUNDS=50 SEED=0;
#                   then make test-engines, whose nodes are lost, requeued, cancelled and run out of time
# make clean        remove the environment and caches; results stay

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: quickstart test test-all test-engines chaos lint pytest clean
.DELETE_ON_ERROR:

quickstart: .venv/quickstart
	$(BIN)/milbench run --suite quickstart
	$(BIN)/milbench report --suite quickstart

# The types are checked while the tests begin: alone, they would keep one core busy for a minute.
test: .venv/test
	$(MAKE) --no-print-directory -j 2 lint pytest

# By file, so that what the tests of a file share is made once; in the order of files, so that the last ones are short.
pytest: .venv/test
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu and not engines"

test-all: .venv/test
	$(BIN)/python -m pytest -n 2 -m slow

test-engines: .venv/test
	$(BIN)/python -m pytest -n 0 -m engines

chaos: .venv/test
	$(BIN)/python -m tests.chaos --rounds $(or $(ROUNDS),50) --seed $(or $(SEED),0)
	$(MAKE) --no-print-directory test-engines

lint: .venv/test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "milbench needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv

# torch comes first and pinned: asked for by range, pip would take the newest build with gigabytes of CUDA libraries.
.venv/torch: constraints.txt | .venv/bin/python
	$(PIP) torch
	@touch $@

.venv/quickstart: pyproject.toml constraints.txt .venv/torch
	$(PIP) --editable '.[data]'
	@touch $@

.venv/test: pyproject.toml constraints.txt .venv/torch
	$(PIP) --editable '.[data,test]'
	@touch $@ .venv/quickstart
