# Two commands do everything: `make demo` and `make test`. Each sets up .venv from pinned constraints first.
# PYTHON picks the interpreter (3.11 or newer).

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check -qq

export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test bench lint types tests parity notebook docs clean help

help:
	@sed -n 's/^##//p' $(MAKEFILE_LIST)

## make demo    set up, then train the built-in tiny policy with GRPO on the CPU and show what it learned
demo: $(VENV)/.installed-demo
	$(BIN)/gruppo demo

## make test    set up, then lint, types and all tests
test: lint types tests

## make bench   set up, then time whole steps against TRL (two hours on 2 cores; BENCH_ARGS="--quick" tries it)
bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/vs_trl.py $(BENCH_ARGS)

## make lint    ruff: rules, complexity, format
lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

## make types   mypy, strict
types: $(VENV)/.installed-dev
	$(BIN)/mypy

## make tests   pytest on all cores
tests: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/pytest -n auto $(PYTEST_ARGS)

## make clean   remove the environment and caches (runs/ stays)
clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@echo "setting up $(VENV) (once, one to three minutes) ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gruppo needs Python 3.11 or newer; set PYTHON=")'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-demo: $(VENV)/bin/python pyproject.toml constraints.txt
	@$(PIP) install -c constraints.txt -e '.[report,monitor]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing the development tools ..."
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@
