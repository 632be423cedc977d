# Two commands on a fresh machine: `make demo` and `make test`. Both make .venv and install what they need.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed
# Several threads per process only wait for each other when the processes already fill the cores.
export OMP_NUM_THREADS ?= 1

.PHONY: help setup demo test test-all test-mxnet check format clean

help:
	@echo "make demo        train and evaluate on rendered faces, a few minutes; the report is runs/demo/report.html"
	@echo "make test        the tests"
	@echo "make check       format, lint, types and the tests, as before a commit"
	@echo "make test-all    the slow tests too"
	@echo "make test-mxnet  the tests against mxnet, in an environment of their own (Python 3.11)"

setup: $(INSTALLED)

$(INSTALLED): setup.cfg pyproject.toml tools/constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "facetrain needs Python 3.11 or newer, not " + sys.version'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint tools/constraints.txt --editable '.[dev,onnx]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/python tools/demo.py

test: $(INSTALLED)
	$(BIN)/python -m pytest -m "not slow and not mxnet"

test-all: $(INSTALLED)
	$(BIN)/python -m pytest -m "not mxnet"

check: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not slow and not mxnet"

clean:
	rm -rf $(VENV) .venv-mxnet runs/demo data/demo
