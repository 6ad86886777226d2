# `make run` and `make test` are all a newcomer needs. Python 3.11+, git and make are assumed.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run setup test check bench clean

run: setup
	@$(BIN)/stillhouse run

setup: .venv/installed

test: .venv/installed-dev
	@$(BIN)/python -m pytest -n 2 --dist worksteal

check: .venv/installed-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: .venv/installed-dev
	@$(BIN)/python -m benchmarks

# Beside the toolbox that the test tools bring.
bench-stress: .venv/installed-dev
	@$(BIN)/python -m benchmarks stress

bench-%: .venv/installed
	@$(BIN)/python -m benchmarks $*

.venv/installed: pyproject.toml constraints.txt
	@echo "Installing pinned packages into .venv (one to three minutes; log in .venv/install.log)"
	@$(PYTHON) -m venv .venv
	@PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet --no-input \
	    -c constraints.txt -e . >.venv/install.log 2>&1 || { tail -20 .venv/install.log; exit 3; }
	@$(BIN)/python -m flows.prepare
	@touch $@

.venv/installed-dev: .venv/installed
	@PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet --no-input \
	    -c constraints.txt -e ".[dev]" >.venv/install.log 2>&1 || { tail -20 .venv/install.log; exit 3; }
	@touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
