# Needs only Python >= 3.11 and make. Everything is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One thread per process: two test processes with OpenMP threads each run at half speed from spinning.
TEST_ENV := OMP_NUM_THREADS=1

.PHONY: help install demo test test-slow lint types check clean

help:
	@echo "make demo       search a small network on real images and draw the plots"
	@echo "make test       fast tests;  make test-slow  long ones"
	@echo "make check      lint, formatting, types, fast tests"

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/python -m compsearch

test: install
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: install
	$(TEST_ENV) $(BIN)/python -m pytest -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

check: lint types test

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
