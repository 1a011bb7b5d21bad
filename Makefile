PYTHON ?= python3
BIN := .venv/bin
INSTALL := pip install --quiet --no-compile  # Python compiles what is imported; to compile all takes a minute
unexport PYTHONDONTWRITEBYTECODE  # else each process would compile it anew
IN_TWO := --numprocesses 2 --dist loadfile --no-loadscope-reorder  # the tests of a file share what takes long to make

.PHONY: install demo test test-oldest lint format docs figures notebook coverage bench-collapse bench-dropout bench-losses \
	bench-sampler bench-step evidence evidence-gpu evidence-quick
.DEFAULT_GOAL := test

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/$(INSTALL) --constraint constraints.txt --editable ".[test]"
	touch $@

install: .venv/installed

demo: install
	$(BIN)/python examples/compare.py

test: install
	$(BIN)/python -m pytest $(IN_TWO)

.venv/docs-installed: .venv/installed
	$(BIN)/$(INSTALL) --constraint constraints.txt --editable ".[docs]"
	touch $@

docs: .venv/docs-installed
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

figures: install
	$(BIN)/python docs/figures.py

notebook: install
	PYTHONWARNINGS=ignore $(BIN)/jupyter execute --inplace examples/quickstart.ipynb

.venv-oldest/installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/$(INSTALL) --constraint constraints-oldest.txt --editable ".[test]"
	touch $@

test-oldest: .venv-oldest/installed
	.venv-oldest/bin/python -m pytest $(IN_TWO)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

coverage: install
	$(BIN)/python benchmarks/coverage.py

bench-dropout: install
	$(BIN)/python benchmarks/dropout.py

bench-losses: install
	$(BIN)/$(INSTALL) --constraint constraints.txt geomloss tqdm torchmetrics
	$(BIN)/$(INSTALL) --no-deps pytorch-adapt pytorch-metric-learning
	$(BIN)/python benchmarks/losses.py

bench-sampler: install
	$(BIN)/python benchmarks/sampler.py

bench-step: install
	$(BIN)/python benchmarks/step.py

FASHION_MNIST ?= /usr/share/datasets/fashion-mnist

bench-collapse: install
	$(BIN)/python benchmarks/collapse.py --fashion_mnist $(FASHION_MNIST) --workers 2

EVIDENCE ?=

evidence: install
	$(BIN)/python benchmarks/evidence/run.py --tune $(EVIDENCE)
	$(BIN)/python benchmarks/evidence/run.py $(EVIDENCE)
	$(BIN)/python benchmarks/evidence/run.py --fresh $(EVIDENCE)
	$(BIN)/python benchmarks/evidence/claims.py $(EVIDENCE)
	$(BIN)/python benchmarks/evidence/summarise.py

evidence-gpu: install
	$(BIN)/python benchmarks/evidence/run.py --gpu --workers 4 $(EVIDENCE)
	$(BIN)/python benchmarks/evidence/summarise.py

evidence-quick: install
	$(BIN)/python benchmarks/evidence/run.py --quick
