# make demo      shipped weights on generated scenes: prints PQ, writes pictures to demo/; then the
#                quick benchmark
# make test      all tests that fit a laptop
# make lint      ruff, clang-format, mypy
# make sanitize  the op tests on the C++ code, built by gcc with AddressSanitizer and UBSan into
#                build/sanitize, beside the module that the others use
# make emulation the CUDA kernels compiled for the host, maskformer_fast/_C_emulated: backend
#                cuda_emulated. Needs no CUDA; takes PYTHON, if that has cmake, ninja, pybind11, torch
# make build     the environment in .venv and the compiled module, which the others do by themselves
#
# PYTHON    the interpreter that .venv is made from
# TORCH     the torch to install; TORCH='torch>=2.11' takes the newest
# MAX_JOBS  how many compilers run at a time

PYTHON ?= python3
TORCH ?= torch==2.13.0

BIN := .venv/bin
READY := .venv/ready
CPP := $(shell find csrc tests/emulation -name '*.?pp' -o -name '*.cu' -o -name '*.cuh')
OP_TESTS := $(wildcard $(patsubst maskformer_fast/ops/%,tests/test_%,$(wildcard maskformer_fast/ops/*_*.py)))

HAS_TOOLS := $(shell $(PYTHON) -c 'import cmake, ninja, pybind11, torch' 2>/dev/null && echo yes)
BUILDER := $(if $(HAS_TOOLS),$(shell command -v $(PYTHON)),$(CURDIR)/$(BIN)/python)

# $(call cmake,source,build folder,folder of the module,options)
cmake = PATH="$(dir $(BUILDER)):$$PATH" && cmake -S $(1) -B $(2) -G Ninja $(4) \
    -DPython_EXECUTABLE=$(BUILDER) -Dpybind11_DIR="$$($(BUILDER) -m pybind11 --cmakedir)" \
    -DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$(CURDIR)/$(3) && cmake --build $(2)

.PHONY: demo test lint sanitize emulation build
.DELETE_ON_ERROR:

demo: build
	$(BIN)/python examples/demo.py --out demo
	$(BIN)/python benchmarks/run.py --quick

test: build emulation
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

lint: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/mypy

# CMake adds no flags for a build type that it does not know. The sanitizer must be loaded first,
# and finds what throws exceptions only if libstdc++ is loaded with it.
sanitize: export CXXFLAGS = -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined
sanitize: export CMAKE_BUILD_TYPE = Sanitize
sanitize: build
	rm -rf build/sanitize
	$(BIN)/pip install --quiet --no-deps --target build/sanitize .
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	    ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=build/sanitize OMP_NUM_THREADS=2 \
	    $(BIN)/pytest -q $(OP_TESTS) -k "cpu and not compiles and not opcheck"

emulation: | $(if $(HAS_TOOLS)$(wildcard $(READY)),,$(READY))
	$(call cmake,tests/emulation,build/emulation,maskformer_fast)

build: $(READY)

$(READY): pyproject.toml setup.py CMakeLists.txt $(CPP)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --editable ".[train,test,dev]"
	touch $@
