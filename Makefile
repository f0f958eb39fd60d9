# make demo      shipped weights on generated scenes: prints PQ, writes pictures to demo/; then the
#                quick benchmark
# make test      all tests that fit a laptop
# make lint      ruff, clang-format, mypy
# make sanitize  the op tests on the C++ code and on the emulated CUDA kernels, built by gcc with
#                AddressSanitizer and UBSan into build/sanitize, beside the modules that the others use
# make emulation the CUDA kernels compiled for the host, maskformer_fast/_C_emulated: backend
#                cuda_emulated. Needs no CUDA; takes PYTHON, if that has cmake, ninja, pybind11, torch
# make gpu       on a machine with a GPU and nvcc: builds in place with PYTHON's torch, cmake, ninja and
#                pybind11, downloading nothing; the tests of backends cuda and triton and of the
#                captured training step, those of more than 2^31 elements too, some of them
#                under compute-sanitizer where it is installed; the benchmarks
# make build     the environment in .venv and the compiled module, which the others do by themselves
#
# PYTHON    the interpreter that .venv is made from
# TORCH     the torch to install; TORCH='torch>=2.11' takes the newest
# MAX_JOBS  how many compilers run at a time

PYTHON ?= python3
TORCH ?= torch==2.13.0

BIN := .venv/bin
READY := .venv/ready
CPP := $(shell find csrc -name '*.?pp' -o -name '*.cu' -o -name '*.cuh')
EMULATOR := $(shell find tests/emulation -name '*.?pp' -o -name '*.cu')
OP_TESTS := tests/test_safety.py tests/test_vector_math.py \
    $(wildcard tests/test_*_cuda.py tests/test_*_kernels.py) \
    $(wildcard $(patsubst maskformer_fast/ops/%,tests/test_%,$(wildcard maskformer_fast/ops/*_*.py)))

ON_GPU := (cuda or triton) and not emulated
CUDA_TOOLS := memcheck racecheck synccheck initcheck
CUDA_TOOLS_TESTS := ($(ON_GPU)) and (by_hand or adversarial or non_finite or empty or plan)

VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' maskformer_fast/__init__.py)
HAS_TOOLS := $(shell $(PYTHON) -c 'import cmake, ninja, pybind11, torch' 2>/dev/null && echo yes)
BUILDER := $(if $(HAS_TOOLS),$(shell command -v $(PYTHON)),$(CURDIR)/$(BIN)/python)

# $(call cmake,source,build folder,folder of the module,options)
cmake = PATH="$(dir $(BUILDER)):$$PATH" && cmake -S $(1) -B $(2) -G Ninja $(4) \
    -DPython_EXECUTABLE=$(BUILDER) -Dpybind11_DIR="$$($(BUILDER) -m pybind11 --cmakedir)" \
    -DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$(CURDIR)/$(3) && cmake --build $(2)

.PHONY: demo test lint sanitize emulation gpu cuda_in_place build
.DELETE_ON_ERROR:

demo: build
	$(BIN)/python examples/demo.py --out demo
	$(BIN)/python benchmarks/run.py --quick

test: build emulation
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

lint: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP) $(EMULATOR)
	$(BIN)/mypy

# CMake adds no flags for a build type that it does not know. The sanitizer must be loaded first,
# and finds what throws exceptions only if libstdc++ is loaded with it. Not exported for the target:
# its prerequisites would inherit the flags.
SANITIZED := CMAKE_BUILD_TYPE=Sanitize \
    CXXFLAGS="-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined"
sanitize: build
	rm -rf build/sanitize
	$(SANITIZED) MASKFORMER_FAST_CUDA=off \
	    $(BIN)/pip install --quiet --no-deps --target build/sanitize .
	export $(SANITIZED) && \
	    $(call cmake,tests/emulation,build/sanitize/emulation,build/sanitize/maskformer_fast,-DDETECT_RACES=OFF)
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	    MASKFORMER_EMULATOR_CHECKS=build/sanitize/emulation/checks_of_emulator \
	    ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=build/sanitize OMP_NUM_THREADS=2 \
	    $(BIN)/pytest -q $(OP_TESTS) tests/test_emulation.py \
	    -k "(cpu or emulat) and not compiles and not opcheck"

emulation: | $(if $(HAS_TOOLS)$(wildcard $(READY)),,$(READY))
	$(call cmake,tests/emulation,build/emulation,maskformer_fast)

gpu: cuda_in_place
	$(PYTHON) -m pytest -q -p no:cacheprovider -k "$(ON_GPU)" \
	    $(OP_TESTS) tests/test_cuda_build.py tests/test_cuda_capture.py tests/test_train.py
	$(PYTHON) -m pytest -q -p no:cacheprovider -m large -k "$(ON_GPU)" \
	    tests/test_large.py tests/test_linear_assignment.py
	for tool in $(if $(shell command -v compute-sanitizer),$(CUDA_TOOLS)); do \
	    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --error-exitcode 1 \
	        $(PYTHON) -m pytest -q -p no:cacheprovider $(OP_TESTS) -k "$(CUDA_TOOLS_TESTS)" || exit 1; \
	done
	PYTHONPATH=$(CURDIR) $(PYTHON) benchmarks/run.py --device cuda --json

cuda_in_place: BUILDER := $(abspath $(shell command -v $(PYTHON)))
cuda_in_place:
	$(call cmake,.,build/cuda,maskformer_fast,-DMASKFORMER_FAST_CUDA=on -DMASKFORMER_FAST_VERSION=$(VERSION))

build: $(READY)

$(READY): pyproject.toml setup.py CMakeLists.txt cmake/cuda.cmake $(CPP)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --editable ".[train,test,bench,dev]"
	touch $@
