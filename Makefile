# Everything a fresh machine needs: Python 3.10+, a C++ compiler, and a package index.
#
#   make demo     train on handwritten digits and see what promoting the margin does
#   make test     run the tests
#   make test-integrations   run the tests that need other libraries, with these libraries
#   make kernel-model   print what the CUDA kernels do, by count of their machine code (needs nvcc)
#   make bench    run the benchmarks
#   make wheel    build the source distribution, and from it a wheel for this platform, into dist/
#   make gpu-library CUDA=9.0   build the libraries in place, to be carried to a machine with a GPU
#   make docs     build the documentation site into site/
#   make lint     run the checks of style and types
#   make format   put the sources into the checked form
#   make clean    remove what the build left
#
# Each target makes the virtual environment .venv first, once. Variables:
#   PYTHON=python3.12       the interpreter that .venv is made with
#   PIP_FLAGS="..."         further arguments for every pip install
#   ARGS="..."              further arguments for the program that the target runs
#   WORKERS=0               tests: processes that share them (2); 0 for the debugger, `ARGS="--pdb"`
#   CUDA="9.0;10.0+PTX"     make wheel: with CUDA kernels for these architectures, into dist/cuda
PYTHON ?= python3
PIP_FLAGS ?=
ARGS ?=
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
# A worker that is done takes tests from the other; what a file's tests share is mostly made once.
PYTEST := $(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=worksteal
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt $(PIP_FLAGS)

# What a compiled library depends on. A changed Python file needs no new installation: it is an
# editable one.
SOURCES := CMakeLists.txt setup.py pyproject.toml constraints.txt margin_ext/_extension.py \
           $(shell find cmake csrc -type f)
CXX_FILES := $(shell find $(wildcard csrc tests benchmarks) -type f \
               \( -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' \))

# CUDA kernels are built where torch has CUDA and nvcc is found, or with MARGIN_EXT_CUDA=on. All
# architectures that a release is built for would take many minutes. Here: those of this machine's
# devices; where there are none, an old and a new one, to see that it compiles, and nothing for the
# demo, which could not use it.
DEVICES := $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null \
             | grep -E '^[0-9]+\.[0-9]+$$' | sort -u | paste -sd ';' -)
export TORCH_CUDA_ARCH_LIST ?= $(or $(DEVICES),7.5;9.0+PTX)
export MARGIN_EXT_CUDA ?= auto
$(VENV)/installed-demo: MARGIN_EXT_CUDA := $(if $(DEVICES),$(MARGIN_EXT_CUDA),off)

.PHONY: demo test test-integrations kernel-model bench wheel gpu-library docs lint format clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed-demo
	$(BIN)/margin-ext demo $(ARGS)

test: $(VENV)/installed-test
	$(PYTEST) $(ARGS)

test-integrations: $(VENV)/installed-integrations
	$(PYTEST) tests/integrations tests/docs tests/examples tests/test_ledger.py $(ARGS)

kernel-model: $(VENV)/installed-test
	PYTHONPATH=tests PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m kernel_model $(ARGS)

bench: $(VENV)/installed-test
	$(BIN)/python -m benchmarks $(ARGS)

# The wheel serves every Python and torch that the package serves. One with CUDA needs nvcc, and no
# GPU; its version says that it has CUDA, as torch's do.
wheel: $(VENV)/tools
	$(PIP) build
	$(if $(CUDA),MARGIN_EXT_CUDA=on MARGIN_EXT_LOCAL_VERSION=cuda TORCH_CUDA_ARCH_LIST='$(CUDA)',MARGIN_EXT_CUDA=off) \
	  $(BIN)/python -m build --no-isolation --outdir dist$(if $(CUDA),/cuda) $(ARGS)

# margin_ext/lib can be copied with the sources: it serves every torch that the package serves.
gpu-library: $(VENV)/tools
	MARGIN_EXT_CUDA=on TORCH_CUDA_ARCH_LIST='$(CUDA)' \
	  $(PIP) --no-build-isolation --no-deps --editable .

docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict $(ARGS)

lint: $(VENV)/installed-lint $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

format: $(VENV)/installed-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

clean:
	rm -rf $(VENV) build dist site margin_ext/lib *.egg-info .pytest_cache .hypothesis .mypy_cache \
	       .ruff_cache .benchmarks

# torch and the build tools first: the libraries are built against this torch, and pip must not
# bring in another one.
$(VENV)/tools: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch numpy setuptools cmake ninja
	touch $@

$(VENV)/installed-demo: $(VENV)/tools $(SOURCES)
	$(PIP) --no-build-isolation --editable '.[demo]'
	touch $@

$(VENV)/installed-test: $(VENV)/tools $(SOURCES)
	$(PIP) --no-build-isolation --editable '.[test]'
	touch $@

$(VENV)/installed-integrations: $(VENV)/installed-test
	$(PIP) --no-build-isolation --editable '.[test,integrations]'
	touch $@

# The site is made from the sources, without an installed package.
$(VENV)/installed-docs: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) mkdocs-material 'mkdocstrings[python]' ruff
	touch $@

$(VENV)/installed-lint: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) ruff mypy clang-format
	touch $@
