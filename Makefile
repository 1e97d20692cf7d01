# On a fresh machine with Python and make: `make demo`, `make test`, `make docs`, `make package`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint format docs package bench clean

demo: $(VENV)/.installed-nlp,explorer
	$(BIN)/uneurons run --out runs/bundled
	$(BIN)/uneurons export runs/bundled --out runs/bundled-site

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-dev
	$(BIN)/python docs/site/make_site.py build/docs

package: $(VENV)/.installed-dev
	.ci/package $(BIN)/python

bench: $(VENV)/.installed-bench
	$(BIN)/python benchmarks/throughput.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[$*]'
	touch $@
