# Set-up is part of every target: on a fresh machine `make demo` or `make test` is all there is to type.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PEERS := .venv-peers
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test lint docs architectures figures bench clean
.DELETE_ON_ERROR:

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "unipg needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	@echo "setting up $(VENV) (once; a few minutes) …"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) setuptools
	@$(PIP) torch==2.13.0
	@$(PIP) --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing what tests need …"
	@$(PIP) --no-build-isolation --editable '.[all,dev]'
	@touch $@

# the peers want other versions of transformers than unipg does; torch first, so that nothing pulls another
$(PEERS)/.installed: Makefile
	@echo "setting up $(PEERS) for the benchmarks (once; a few minutes) …"
	@$(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip --disable-pip-version-check install --quiet torch==2.13.0
	@$(PEERS)/bin/python -m pip --disable-pip-version-check install --quiet torch==2.13.0 \
	    trl==1.16.0 transformers==5.10.4 accelerate==1.15.0 datasets==5.2.0 numpy==2.4.6 \
	    stable-baselines3==2.9.2 sb3-contrib==2.9.2 gymnasium[mujoco]==1.4.0 tyro==1.0.17 tensorboard==2.21.0
	@touch $@

demo: $(VENV)/.installed
	@$(BIN)/python examples/demo.py

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --numprocesses 2

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-dev
	$(BIN)/python docs/generate.py

architectures: $(VENV)/.installed-dev
	$(BIN)/python docs/architectures.py

figures: $(VENV)/.installed-dev
	$(BIN)/python docs/figures.py

bench: $(VENV)/.installed-dev $(PEERS)/.installed
	$(BIN)/python benchmarks/speed/language.py --peers $(PEERS)/bin/python
	$(BIN)/python benchmarks/speed/control.py --peers $(PEERS)/bin/python
	$(BIN)/python benchmarks/speed/control.py --case hopper --seeds 5 --peers $(PEERS)/bin/python
	$(BIN)/python benchmarks/speed/replay.py --peers $(PEERS)/bin/python
	$(BIN)/python benchmarks/speed/offline.py
	$(BIN)/python benchmarks/speed/overlap.py
	$(BIN)/python benchmarks/speed/page.py

clean:
	rm -rf $(VENV) $(PEERS) .pytest_cache .mypy_cache .ruff_cache .hypothesis
