# The common commands. Each makes what it needs; PYTHON chooses the interpreter (3.11 or newer) the .venv is made from.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint deploy/constraints.txt
SOURCES := gaiadask flows tests

.PHONY: demo test quick lint types benchmark clean

demo: .venv/demo  ## the whole flow on made-up stars, offline: demo/runs/demo/report.html
	$(BIN)/gaiadask run deploy/demo.toml

test: .venv/test  ## all tests
	$(BIN)/python -m pytest --ignore=tests/benchmarks

quick: .venv/test  ## the inner loop: no integration tests, no slow ones
	$(BIN)/python -m pytest -q -x -m "not slow" --ignore=tests/integration --ignore=tests/benchmarks

lint: .venv/dev  ## format and lint as CI and pre-commit do
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)

types: .venv/dev
	$(BIN)/mypy

.venv/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gaiadask needs Python 3.11 or newer, found " + sys.version.split()[0] + ": make PYTHON=python3.12 …")'
	$(PYTHON) -m venv .venv
	@touch $@

# One stamp an extra: the demo need not wait for the test tools.
.venv/demo: .venv/python pyproject.toml deploy/constraints.txt
	$(PIP) --editable .
	@touch $@

.venv/test: .venv/python pyproject.toml deploy/constraints.txt
	$(PIP) --editable '.[test]'
	@touch $@ .venv/demo

.venv/dev: .venv/python pyproject.toml deploy/constraints.txt
	$(PIP) --editable '.[dev]'
	@touch $@ .venv/test .venv/demo

clean:
	rm -rf .venv demo demo-prefect
