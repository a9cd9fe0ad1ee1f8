# `make demo`: install into .venv and do the main job once, offline. `make test`: everything CI checks.
# `make docs`: the site, into site/.
# `make bench`: every rate as a ratio, in one table (about half an hour on two cores).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadfile
# These fork ranks from the process they run in. A thread that another test left could hold a lock
# just then, which nobody would release in the rank.
FORKING := tests/training/ranks tests/training/split_latents

.PHONY: demo test bench docs lint format clean

demo: $(VENV)/.installed
	$(BIN)/vit-sae demo --output-path demo-results

test: $(VENV)/.test-installed lint
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(PYTEST) $(FORKING)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(PYTEST) tests $(FORKING:%=--ignore=%)

bench: $(VENV)/.bench-installed
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.bench --output-path bench-results

docs: $(VENV)/.docs-installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

lint: $(VENV)/.test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.test-installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/.test-installed: $(VENV)/.installed
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[test]"
	touch $@

$(VENV)/.bench-installed: $(VENV)/.test-installed
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[bench]"
	touch $@

$(VENV)/.docs-installed: $(VENV)/.installed
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) demo-results bench-results site build dist
