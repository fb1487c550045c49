# Everything a checkout needs: Python >= 3.11 (with pip) and make.
#   make quickstart   prove one property of a small digit classifier and refute another
#   make test         lint, types, import layers and the test suite with coverage
#   make soak         the long forms of the tests
#   make bench        memory and time of the bound engine (DEVICE=cuda on a GPU)
# Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PACKAGES := auto_LiRPA complete_verifier $(wildcard abcrown)
WORKERS ?= 2
COVERAGE_MIN ?= 85
DEVICE ?= cpu
PIP := $(BIN)/python -m pip install --quiet --no-input --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help .venv quickstart test lint soak bench clean

help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile

.venv: $(INSTALLED)

# A Python without ensurepip (Debian splits it off) still has venv and pip: pip then installs itself into the new folder.
$(INSTALLED): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, $(PYTHON) is not: name another, as in make $(or $(MAKECMDGOALS),test) PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python && $(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) 2>/dev/null || \
	  { $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	@echo "Installing the pinned dependencies into $(VENV) (some minutes the first time) ..."
	$(PIP) --constraint constraints.txt --config-settings editable_mode=compat --editable '.[dev]'
	@$(PIP) --constraint constraints.txt vnnlib >$(VENV)/vnnlib.log 2>&1 || \
	  echo "vnnlib could not be installed (it needs a C compiler): the tests that compare with it are skipped."
	@touch $@

# The two verdicts are checked by the script, which explains them and draws the counterexample.
quickstart: $(INSTALLED)
	@mkdir -p out && rm -f out/robust.txt out/fragile.txt out/quickstart.png
	$(BIN)/abcrown --config quickstart/robust.yaml
	$(BIN)/abcrown --config quickstart/fragile.yaml
	@$(BIN)/python quickstart/show_counterexample.py

# Each worker begins with a share of the tests in their order, and takes over others' last ones when it is done: fixtures of
# a module are made by one worker, and no worker waits for the ranks that another one has started. The tests of the
# architecture have run in lint.
test: lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --ignore tests/architecture --cov --cov-report=term --cov-fail-under=$(COVERAGE_MIN)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/mypy $(PACKAGES)
	$(BIN)/python -m pytest -q tests/architecture
	@$(BIN)/python -m tests.architecture.sizes

soak: $(INSTALLED)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --soak --hypothesis-profile=soak

# Each case runs in a process of its own: a figure counts only if no earlier result is still alive.
bench: $(INSTALLED)
	@mkdir -p out
	$(BIN)/python benchmarks/bounds.py all --device $(DEVICE) --out out/bounds.jsonl

clean:
	rm -rf out build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.*
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
