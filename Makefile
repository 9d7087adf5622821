# `make demo` and `make test` need Python 3.11 or newer with pip and venv, and nothing else.
PYTHON ?= python3
VENV ?= .venv
SEED ?=
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help install demo test lint audit clean

help:
	@echo "make demo [SEED=1]  adapt a small ViT to handwritten digits without labels, about two minutes"
	@echo "make test           run all tests, ruff and mypy"
	@echo "make audit          look up known vulnerabilities of every installed package; needs pypi.org"
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
	$(BIN)/mypy

test: install lint
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

# --strict: a package that could not be looked up is a failure. What follows a "+" is no part of a version on PyPI.
audit: install
	$(BIN)/python -m pip freeze --all --exclude-editable --disable-pip-version-check > $(VENV)/installed.txt
	sed 's/+.*//' $(VENV)/installed.txt > $(VENV)/audited.txt
	$(BIN)/python -m pip_audit --strict --no-deps --disable-pip --requirement $(VENV)/audited.txt

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache out
