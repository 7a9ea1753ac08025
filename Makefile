# make install | test | ablation | notebooks | check | long | lint | parity | accelerators | records | clean
# PYTHON=python3.12 chooses the interpreter.
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= test
# Processes of the test suite; each holds one JAX, and has whole files of tests: what they share is made once.
JOBS ?= 2
SUITE := -n $(JOBS) --dist loadfile --no-loadscope-reorder

# The stamp names the Python version, so that another PYTHON makes a new environment.
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
STAMP := $(VENV)/installed-$(VERSION)
BIN := $(VENV)/bin
# pip warns of editable installs, which are what is wanted.
INSTALL := PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -c constraints.txt -e

.PHONY: install test ablation notebooks check long lint parity clean
.PHONY: accelerators accelerators-tpu accelerators-gpu records compiler-tpu compiler-gpu
.DEFAULT_GOAL := install

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo 'PYTHON=$(PYTHON) is $(or $(VERSION),not a Python that runs), and this project needs 3.11 or newer: try `make PYTHON=python3.12 $(or $(MAKECMDGOALS),install)`.' >&2; exit 1; }
	@echo 'Installing into $(VENV) (Python $(VERSION)); about a minute, and the download.'
	@test -x $(BIN)/python$(VERSION) || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt pip setuptools wheel
	$(INSTALL) '.[$(EXTRAS)]'
	@touch $@

test: $(STAMP)
	$(BIN)/python -m pytest $(SUITE) -m 'not slow'

ablation: $(STAMP)
	$(BIN)/python -m experiments.run positions_and_windows --workdir=runs/positions_and_windows

# In full, each as a page with its figures. PRETRAINED=FOLDER of a BERT model adds what 03 shows of one.
notebooks: $(STAMP)
	$(INSTALL) '.[notebooks]'
	@mkdir -p runs/notebooks
	@for path in notebooks/*.py; do page=runs/notebooks/$$(basename $$path .py); echo $$page.html; \
	  $(BIN)/jupytext --quiet --to ipynb --set-kernel python3 --run-path notebooks --execute -o $$page.ipynb $$path && \
	  $(BIN)/jupyter nbconvert --log-level=WARN --to html $$page.ipynb || exit 1; done

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint
	$(BIN)/python -m pytest $(SUITE) -m 'slow and not long'

# Fifty steps on every mesh, thirty kills by each signal, and a disk that fills.
long: $(STAMP)
	$(BIN)/python -m pytest $(SUITE) -m long

# Outputs, gradients and decoding held to PyTorch's reference implementations, which are a large download.
parity: $(STAMP)
	$(INSTALL) '.[test,parity]'
	$(BIN)/python -m pytest $(SUITE) tests/parity

# Steps of the published sizes, compiled for accelerators that need not be here: memory, bytes, kernels and the roofline
# are held to tests/accelerators/published.json, which JAX 0.10 has made for TPUs, and 0.12 for GPUs. Each compiler has an
# environment of its own. The GPU's takes the first Python that is found and that CUDA 13's extra supports.
GPU_PYTHON ?= $(firstword $(foreach python,$(PYTHON) python3.12 python3.13 python3.14,$(shell \
  $(python) -c 'import sys; sys.version_info < (3, 12) or print("$(python)")' 2>/dev/null)))
COMPILED := -n $(JOBS) --dist worksteal tests/accelerators

accelerators: accelerators-tpu accelerators-gpu

accelerators-tpu: compiler-tpu
	.venv-tpu/bin/python -m pytest $(COMPILED) -m 'accelerators(platform="tpu")'

accelerators-gpu: compiler-gpu
	.venv-gpu/bin/python -m pytest $(COMPILED) -m 'accelerators(platform="gpu")'

# Writes published.json anew, after a change that is meant to change it.
records: compiler-tpu compiler-gpu
	.venv-tpu/bin/python -m tests.accelerators.published tpu
	.venv-gpu/bin/python -m tests.accelerators.published gpu

compiler-tpu:
	@$(MAKE) --no-print-directory VENV=.venv-tpu EXTRAS=test,tpu

compiler-gpu:
	@test -n '$(GPU_PYTHON)' || { echo 'The compiler for GPUs needs Python 3.12 or newer, and none is found: try `make GPU_PYTHON=path/to/python3.12 $(or $(MAKECMDGOALS),$@)`.' >&2; exit 1; }
	@$(MAKE) --no-print-directory VENV=.venv-gpu EXTRAS=test,gpu PYTHON=$(GPU_PYTHON)

clean:
	rm -rf $(VENV) .venv-tpu .venv-gpu .cache build dist *.egg-info
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
