# `make demo` runs the main job, `make test` the checks and tests; both set themselves up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
WORKERS ?= 2

.PHONY: demo test bench lint setup clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -qq "pip==26.3"
	$(BIN)/pip install -qq "torch==2.13.0"
	$(BIN)/pip install -qq --editable . --group test --group lint
	touch $@

demo: setup
	$(BIN)/nedx demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -n $(WORKERS) --dist loadfile

bench: setup
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) demo .pytest_cache .mypy_cache .ruff_cache
