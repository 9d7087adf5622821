# `make demo` and `make test` need Python 3.11 or newer with pip and venv, and nothing else.
PYTHON ?= python3
VENV ?= .venv
SEED ?=
WORKERS ?= 2
GPU_JSON ?= gpu.json
BUDGET ?= 1500
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# One thread each: the models are tiny, and threads of several workers would wait for each other.
PYTEST = HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: help install demo test test-all gpu-check lint docs audit clean

help:
	@echo "make demo [SEED=1]  adapt a small ViT to handwritten digits without labels, a minute or two"
	@echo "make test           lint, and run the tests that are quick: 16 minutes on two cores"
	@echo "make test-all       run all tests, and every page of the documentation: under an hour on two cores"
	@echo "make gpu-check      check a machine with a GPU, in 25 minutes: sums, rates, memory, resuming; writes gpu.json"
	@echo "make lint           run ruff, codespell, mypy and the contract of imports"
	@echo "make docs           build docs/_build/html/index.html without the network; a warning is an error"
	@echo "make audit          look up known vulnerabilities of every installed package; needs the network"
	@echo "make clean          remove the virtual environment and caches"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: install
	$(BIN)/accelerate launch $(LAUNCH) recipes/vit_plr.py $(if $(SEED),--seed $(SEED))

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: install
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

# By file, because what a file's tests share is trained once; files that take longest come first.
test: lint
	$(PYTEST) -m "not slow and not gpu"

test-all: install
	HYPOTHESIS_PROFILE=thorough $(PYTEST) -m "not gpu"

# What has failed ends it with status 1. BUDGET=600 skips what takes longer, and says so.
gpu-check: install
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.gpu_check --json $(GPU_JSON) --budget $(BUDGET)

# --strict: a package that could not be looked up is a failure. What follows a "+" in a version is local: nobody published it.
audit: install
	$(BIN)/python -m pip freeze --all --exclude-editable --disable-pip-version-check > $(VENV)/installed.txt
	sed 's/+.*//' $(VENV)/installed.txt > $(VENV)/audited.txt
	$(BIN)/python -m pip_audit --strict --no-deps --disable-pip --requirement $(VENV)/audited.txt

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache docs/_build out
