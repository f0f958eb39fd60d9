# make demo    shipped weights on generated scenes: prints PQ, writes pictures to demo/
# make test    all tests that fit a laptop
# make lint    ruff, clang-format, mypy
# make build   the environment in .venv and the compiled module, which the others do by themselves
#
# PYTHON    the interpreter that .venv is made from
# TORCH     the torch to install; TORCH='torch>=2.11' takes the newest
# MAX_JOBS  how many compilers run at a time

PYTHON ?= python3
TORCH ?= torch==2.13.0

BIN := .venv/bin
READY := .venv/ready
CPP := $(shell find csrc -name '*.?pp')

.PHONY: demo test lint build
.DELETE_ON_ERROR:

demo: build
	$(BIN)/python examples/demo.py --out demo

test: build
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

lint: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/mypy

build: $(READY)

$(READY): pyproject.toml setup.py CMakeLists.txt $(CPP)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --editable ".[train,test,dev]"
	touch $@
