# make demo | test | check | docs | slow | reliability
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test check docs slow reliability clean

# torch first and alone: a pinned wheel then satisfies everything else that asks for torch
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch
	$(INSTALL) -e .
	touch $@

$(VENV)/tested: $(VENV)/installed
	$(INSTALL) -e ".[test]"
	touch $@

$(VENV)/developed: $(VENV)/tested
	$(INSTALL) -e ".[dev]"
	touch $@

demo: $(VENV)/installed  ## train on the embedded corpus, translate held-out sentences, print BLEU
	$(BIN)/python train.py configs/demo.yaml --overwrite
	$(BIN)/python -m transformer demo runs/demo

# bytecode is written even where that is switched off: pytest's own of all test modules takes ten seconds to make
test: export PYTHONDONTWRITEBYTECODE =
test: $(VENV)/tested  ## the test suite, under five minutes on two cores
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

slow: $(VENV)/tested  ## the tests that take up to an hour: 10,000 hostile cases, every fault once
	$(BIN)/python -m pytest -m slow

reliability: $(VENV)/tested  ## every fault at full length, hours; the table of docs/reliability.md
	$(BIN)/python benchmarks/reliability.py --write docs/reliability.md

check: $(VENV)/developed  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/installed  ## rewrite the tables that are generated from the registries
	$(BIN)/python -m transformer docs

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
