# Two commands on a fresh machine: `make demo` and `make test`. Both make .venv and install what they need.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed
# Several threads per process only wait for each other when the processes already fill the cores.
export OMP_NUM_THREADS ?= 1

.PHONY: help setup demo test test-all test-faults test-mxnet check audit clean

help:
	@echo "make demo        train on rendered faces without and with feature clouds, a few minutes; look at runs/demo.html"
	@echo "make test        the tests"
	@echo "make check       format, lint, types and the tests, as before a commit"
	@echo "make test-all    the slow tests too"
	@echo "make test-faults  kills workers, cuts links, fills disks, damages files: an hour"
	@echo "make audit       known weaknesses: bandit on the source, pip-audit on what is installed (needs the network)"
	@echo "make test-mxnet  the tests against mxnet, in an environment of their own (Python 3.11)"

setup: $(INSTALLED)

$(INSTALLED): setup.cfg pyproject.toml tools/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "facetrain needs Python 3.11 or newer: make PYTHON=...")'
	@echo "Installing into $(VENV), once; a few minutes, most of them for PyTorch."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint tools/constraints.txt --editable '.[dev,onnx]'
	@touch $@

demo: $(INSTALLED) data/demo/tail.bin
	for recipe in demo demo_leap; do \
		$(BIN)/torchrun --standalone --nproc-per-node $$($(BIN)/python -c 'import torch; print(torch.cuda.device_count() or 2)') \
			-m facetrain train configs/$$recipe.yaml || exit; \
	done
	$(BIN)/facetrain report CosFace=runs/demo LEAP=runs/demo_leap --output runs/demo.html

data/demo/tail.bin: | $(INSTALLED)
	$(BIN)/facetrain data demo data/demo --force

test: $(INSTALLED)
	$(BIN)/python -m pytest

test-all: $(INSTALLED)
	$(BIN)/python -m pytest -m "not mxnet and not faults"

# FACETRAIN_FAULTS=release: as often as before a release, which takes hours.
test-faults: export FACETRAIN_FAULTS ?= ci
test-faults: $(INSTALLED)
	$(BIN)/python -m pytest -m "not mxnet" -rs --durations=10 tests/system tests/test_cluster_files.py

test-mxnet:
	$(PYTHON) -m venv .venv-mxnet
	.venv-mxnet/bin/python -m pip install --quiet --disable-pip-version-check \
		$$(grep '^torch==' tools/constraints.txt) --editable '.[mxnet,dev]'
	.venv-mxnet/bin/python -m pytest -m mxnet tests/data/test_mxnet.py

check: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

# pip-audit asks PyPI for advisories.
audit: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint tools/constraints.txt --editable '.[audit]'
	$(BIN)/bandit --quiet --recursive facetrain tools eval docker --configfile pyproject.toml
	$(BIN)/pip-audit --skip-editable

clean:
	rm -rf $(VENV) .venv-mxnet runs/demo runs/demo.html runs/demo_leap data/demo
