# make demo   from a fresh clone to a tuned checkpoint and a report, on two CPU cores in ten minutes
# make test   ruff, mypy and the whole test suite
#
# Both make .venv with pinned versions first. Another interpreter: make PYTHON=python3.12 test

PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-input --constraint constraints.txt
NEEDS := $(VENV)/made pyproject.toml constraints.txt

.PHONY: help demo test clean

help:
	@sed -n '1,/^$$/s/^# \{0,1\}//p' Makefile

demo: $(VENV)/core-installed
	HF_HUB_OFFLINE=1 $(BIN)/mentor demo

test: $(VENV)/dev-installed
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 \
		$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations=15 --durations-min=5

clean:
	rm -rf $(VENV)

$(VENV)/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, found $$($(PYTHON) --version); try make PYTHON=python3.12" >&2; exit 2; }
	@echo "making $(VENV) and installing pinned packages, a minute or two"
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/core-installed: $(NEEDS)
	$(INSTALL) --editable '.[efficientnet]'
	@touch $@

$(VENV)/dev-installed: $(NEEDS)
	$(INSTALL) --editable '.[dev,efficientnet,peft,judge,server,ocr,nsfw]'
	@touch $@ $(VENV)/core-installed
