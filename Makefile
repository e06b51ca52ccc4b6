# The common commands. Each makes what it needs; PYTHON chooses the interpreter (3.11 or newer) the .venv is made from.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint deploy/constraints.txt
SOURCES := gaiadask flows tests docs

.PHONY: help demo test units integration quick lint types docs site results measures clean

help:  ## what can be made: this list
	@awk -F ':.*  ## ' '/^[a-z]+:.*  ## / {printf "  make %-13s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/demo  ## the whole flow on mock stars, offline: demo/runs/demo/report.html
	$(BIN)/gaiadask run deploy/demo.toml

test: .venv/test  ## all tests; GAIADASK_REAL_ROWS=/path/rows.parquet adds those on real stars
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target units integration

# Two halves of about the same time, side by side: either keeps about one core busy. Each is printed when it has ended.
units: .venv/test  ## the tests of single subjects
	$(BIN)/python -m pytest --durations=15 --ignore=tests/benchmarks --ignore=tests/integration

integration: .venv/test  ## the tests against servers, and of whole runs
	$(BIN)/python -m pytest --durations=25 tests/integration

quick: .venv/test  ## the inner loop: no integration tests, no slow ones
	$(BIN)/python -m pytest -q -x -m "not slow" --durations=10 --durations-min=0.5 --ignore=tests/integration --ignore=tests/benchmarks

lint: .venv/dev  ## format, style, who may import what, unused code, the Dockerfile: as CI and pre-commit check them
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/lint-imports --no-cache
	$(BIN)/python tests/unused.py
	$(BIN)/hadolint deploy/container/Dockerfile

types: .venv/dev  ## mypy, strict, on gaiadask and flows
	$(BIN)/mypy

docs: .venv/demo  ## write docs/options.md, docs/capacity.md and docs/schemas from options, rates and records; elementary.json
	$(BIN)/python docs/make_options.py
	$(BIN)/python docs/make_capacity.py
	$(BIN)/python docs/make_tables.py
	$(BIN)/python -m gaiadask.quality.schemas docs/schemas

site: .venv/docs  ## the pages of docs/ and the API's as a website: build/site
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --builder html docs build/site

results: .venv/test  ## every benchmark whose table is in docs/, and the tables: some four hours, on a machine with nothing else to do
	$(BIN)/python tests/benchmarks/results.py

measures: .venv/demo  ## how long functions and files are, and what their signatures say, as a table
	@$(BIN)/python tests/measures.py

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

.venv/docs: .venv/python pyproject.toml deploy/constraints.txt
	$(PIP) --editable '.[docs]'
	@touch $@ .venv/demo

.venv/dev: .venv/python pyproject.toml deploy/constraints.txt
	$(PIP) --editable '.[dev]'
	@touch $@ .venv/test .venv/demo

clean:  ## remove the environment and what the demos made
	rm -rf .venv demo demo-prefect
