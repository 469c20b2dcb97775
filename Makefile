# Imagen Lab's commands. `make demo` and `make test` are all that a user needs; the rest serves development.
#
#   PYTHON=python3.12   the Python that makes .venv (3.11 to 3.13); found by itself if one is on the PATH
#   TEST_PROCESSES=4    how many processes the tests may take; auto: one a core
#   PIP_ARGS="..."      anything more for pip install, such as the index of a CPU or CUDA build of torch (see README)

SUITS := import sys, venv, ensurepip; raise SystemExit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c "$(SUITS)" 2>/dev/null && echo $$p && break; done)
PIP_ARGS ?=
TEST_PROCESSES ?= auto

BIN := .venv/bin
INSTALL = $(BIN)/python -m pip install -c constraints.txt $(PIP_ARGS)
PINNED := pyproject.toml constraints.txt

# img2dataset pins webdataset<0.3, so it has an environment of its own; imghdr, which it imports, left Python in 3.13.
# scikit-image is there for the photographs in its wheel alone.
IMG2DATASET := .venv-img2dataset
IMG2DATASET_WANTS := img2dataset 'standard-imghdr; python_version >= "3.13"'

# The peers that benchmarks/peers.py measures, with a torch and a torchvision of one origin: PyPI's, several gigabytes
# of CUDA among them. MinImagen pins a torch of 2022, so it comes without what it asks for.
PEERS := .venv-peers
PEERS_WANT := torch torchvision imagen-pytorch diffusers einops-exts resize-right

.PHONY: help demo test drills lint format types clean

help:
	@echo "make demo    train a three-stage cascade on real pictures and draw from it (20 minutes on 2 CPU cores)"
	@echo "make test    run every test, without a network"
	@echo "make drills  run what is slow and real: the notebooks, shards that img2dataset itself writes"
	@echo "make lint    ruff: style and format;  make format: put it right"
	@echo "make types   pyright"
	@echo "make clean   remove the environments and caches; data/ and outputs/ stay"

demo: $(BIN)/.demo
	$(BIN)/python -m imagen.demo

# one thread each: two that wait for one another on a busy core are many times slower than one
# the models and accounts that tests could reach for are out of bounds: they must pass with no network
test: $(BIN)/.dev
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 WANDB_MODE=offline $(BIN)/python -m pytest -n $(TEST_PROCESSES)

# what is slow and real: notebooks from top to bottom, img2dataset's own shards
drills: $(BIN)/.dev $(IMG2DATASET)/.done
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 WANDB_MODE=offline $(BIN)/python -m pytest -m drill -n $(TEST_PROCESSES) --durations=12

lint: $(BIN)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(BIN)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(BIN)/.dev
	$(BIN)/pyright

clean:
	rm -rf .venv $(IMG2DATASET) $(PEERS) .pytest_cache .ruff_cache src/*.egg-info
	find . -name __pycache__ -type d -not -path './data/*' -not -path './outputs/*' -prune -exec rm -rf {} +

# A stamp is written last, so an interrupted installation is taken up again. dev includes demo.
$(BIN)/.demo: $(PINNED) | $(BIN)/pip
	$(INSTALL) -e '.[demo]'
	@touch $@

$(BIN)/.dev: $(PINNED) | $(BIN)/pip
	$(INSTALL) -e '.[dev]'
	@touch $@ $(BIN)/.demo

$(IMG2DATASET)/.done: constraints-img2dataset.txt | $(BIN)/pip
	$(BIN)/python -m venv $(IMG2DATASET)
	$(IMG2DATASET)/bin/python -m pip install -c $< $(PIP_ARGS) $(IMG2DATASET_WANTS)
	$(IMG2DATASET)/bin/python -m pip install -c $< $(PIP_ARGS) --no-deps scikit-image
	@touch $@

$(PEERS)/.done: constraints-peers.txt | $(BIN)/pip
	$(BIN)/python -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install -c $< $(PIP_ARGS) $(PEERS_WANT)
	$(PEERS)/bin/python -m pip install -c $< $(PIP_ARGS) --no-deps minimagen
	@touch $@

# pip is what venv makes last
$(BIN)/pip:
	@$(or $(PYTHON),false) -c "$(SUITS)" 2>/dev/null || { \
		echo "Imagen Lab needs Python 3.11, 3.12 or 3.13 with its venv module: install one, or name it: make PYTHON=/path/to/python3.12" >&2; \
		exit 1; }
	$(PYTHON) -m venv .venv
