# Needs Python 3.10 or newer with its venv module; everything else is installed into .venv. Example: make test PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint docs tables setup clean

demo: setup  ## Compare PatchCore, SoftPatch, and SoftPatchPlus on a small set with hidden defects
	$(VENV)/bin/anomalib-softpatch demo

test: ## Ruff, mypy and the whole test suite, as continuous integration runs them
	.ci/run

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: setup  ## The site, into site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

tables: setup  ## Write the figures of docs/results/ into the documents
	$(VENV)/bin/python benchmarks/render_tables.py

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml src/anomalib_softpatch.pth
	@echo "Installing into $(VENV): a few minutes the first time"
	@command -v nvidia-smi >/dev/null || echo "No GPU was found: $(VENV) takes 3 GB less with PyTorch's CPU build in it first, see https://pytorch.org/get-started/locally/"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -qq --progress-bar off --disable-pip-version-check --upgrade pip
	$(VENV)/bin/python -m pip install -qq --progress-bar off --editable ".[test]"
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis site
