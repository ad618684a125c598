# 'make check' and 'make test' do all the set-up on a fresh machine with python3 and make.
# The environment is .venv; PYTHON names the interpreter that makes it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CONSTRAINTS := constraints.txt

.PHONY: help check test test-slow test-outside test-oldest numpy-versions mutants lint format docs bench reproduce-fast \
  gpu-carry gpu-dry dist release-check clean

help:
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# One stamp per extra: installed again when the project's metadata or the constraints change.
$(VENV)/.run: $(BIN)/python pyproject.toml $(CONSTRAINTS)
	$(PIP) install -q -c $(CONSTRAINTS) -e '.[torch,proof]'
	@touch $@

$(VENV)/.test: $(VENV)/.run
	$(PIP) install -q -c $(CONSTRAINTS) -e '.[test]'
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	$(PIP) install -q -c $(CONSTRAINTS) -e '.[dev]'
	@touch $@

$(VENV)/.outside: $(VENV)/.test
	$(PIP) install -q -c $(CONSTRAINTS) -e '.[integrations]'
	@touch $@

check: $(VENV)/.run ## set up, and run the built-in problems
	$(BIN)/alignver check

# Two processes, with a thread each. A file stays in one of them: the code blocks of a page build on each other, and so do
# fixtures of a module. ARGS="-n 0" for one process.
test: $(VENV)/.test ## set up, and run tests/ and property_tests/
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow" -n 2 --dist loadfile $(ARGS)

test-slow: $(VENV)/.test ## the tests that take longer
	$(BIN)/python -m pytest -q -m slow $(ARGS)

# With Python 3.11. PyPI's torch 2.6 for Linux on x86-64 is a CUDA build of 3 GB, which runs without a GPU. Warnings are
# no errors here: old versions warn about each other.
test-oldest: ## the tests with the oldest version of every dependency
	python3.11 -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install -q -c constraints-oldest.txt -e '.[test,onnx,frames]'
	OMP_NUM_THREADS=1 $(VENV)-oldest/bin/python -m pytest -q -m "not slow" -W default $(ARGS)

numpy-versions: $(VENV)/.test ## certificates of the oldest and the newest NumPy, compared byte for byte
	$(BIN)/python tests/numpy_versions.py

# Tests of a library that is not there are skipped: the import says so first.
test-outside: $(VENV)/.outside ## the callbacks with Lightning, transformers and skorch; the recipes for CI and containers
	$(BIN)/python -c "import lightning, skorch, transformers"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "slow or not slow" tests/training/test_callbacks.py tests/test_recipes.py

mutants: $(VENV)/.test ## change the code in a few hundred ways, and see a test fail for each (ARGS="--only WORD")
	$(BIN)/python tests/mutants.py $(ARGS)

lint: $(VENV)/.dev ## ruff, mypy, import-linter
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev ## rewrite the sources in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.dev ## the documentation, into docs/_build/html
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

# The peers of benchmarks/gram.py; they need nothing at run time that is not here.
bench: $(VENV)/.test ## the benchmarks behind docs/performance.md (ARGS="gram cli": only these)
	$(PIP) install -q -c $(CONSTRAINTS) --no-deps nngeometry torchjd
	$(BIN)/python benchmarks/collect.py $(ARGS)

reproduce-fast: $(VENV)/.test ## make the committed results again that take under ten minutes, and compare
	$(BIN)/python benchmarks/reproduce_fast.py

# A machine with a GPU may have no network: Python 3.12 on x86-64, torch and CuPy, and none of these. MNIST is taken from
# the folder ALIGNVER_DATA; the Semeion digits are in the package.
GPU_PLATFORMS := manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64
gpu-carry: $(BIN)/python ## into .gpu, what benchmarks/gpu.sh needs on such a machine (ALIGNVER_DATA=DIR with mnist.npz)
	rm -rf .gpu && mkdir -p .gpu/data
	$(PIP) download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
	  $(addprefix --platform ,$(GPU_PLATFORMS)) -c $(CONSTRAINTS) -d .gpu/wheels \
	  array-api-compat array-api-extra array-api-strict sybil python-flint
	@cp "$(ALIGNVER_DATA)/mnist.npz" .gpu/data || echo "without MNIST: ALIGNVER_DATA=DIR names its folder"
	@du -sm .gpu | awk '{print $$1 " MiB in .gpu"; exit $$1 > 60}'

gpu-dry: $(VENV)/.test ## benchmarks/gpu.sh in small, without a GPU
	PYTHON=$(BIN)/python benchmarks/gpu.sh --dry "$$(mktemp -d)"

dist: $(VENV)/.dev ## sdist and wheel, built twice with the same bytes
	$(BIN)/python release/build_twice.py

release-check: $(VENV)/.dev ## all that has to be true before a release is tagged
	$(BIN)/python release/check.py

clean: ## remove what the other targets made
	rm -rf $(VENV) $(VENV)-oldest .gpu build dist docs/_build docs/gallery .pytest_cache .mypy_cache .ruff_cache .hypothesis
