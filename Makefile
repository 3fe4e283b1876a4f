# make demo   the main job on a real chat model: quantize, save, reload, answer; size, quality and speed beside torch's
#             own. Without a GPU it builds the CPU's kernels alone; DEMO_ARGS=--full reads more text
# make test   everything that a machine without a GPU can prove; FULL=1 with the cases marked slow
# make gpu    on a machine with one: its tests, figures of ops and of whole models
# Also: build, wheel, lint, bench, bench-vllm, sanitize, test-isas, test-integrations, test-torch-2.10, nightly, clean. Each
# makes what it needs, from nothing.

PYTHON ?= python3
TORCH  ?= torch==2.13.0
CUTLASS := nvidia-cutlass==4.2.0.0# headers; what else it asks for, nothing here needs
VENV   ?= .venv
BIN    := $(VENV)/bin
UV     := $(BIN)/python scripts/uv.py --quiet
PIP    := $(UV) pip install --python
# A line that moves while a command runs, on a terminal: $(SHOW) "what it does" COMMAND
SHOW   := $(PYTHON) scripts/show.py

CSRC   := $(shell find csrc cmake third_party -type f) CMakeLists.txt pyproject.toml
PYSRC  := $(shell find python -name '*.py' -o -name py.typed)
# ninja's own choice is two more than there are processors, and each of nvcc's takes up to 3 GB.
export CMAKE_BUILD_PARALLEL_LEVEL ?= $(shell nproc)
# A package with the AMX kernels on emulated tiles, to put before the installed one by PYTHONPATH: $(call emulated,BUILD,PREFIX)
emulated = $(BIN)/cmake --build build/cmake-$(1) --target emulated && \
           $(BIN)/cmake --install build/cmake-$(1) --component emulated --prefix build/$(2) >/dev/null

# A worker for each of two processors, and tests marked `alone` by themselves. Threads of a worker that wait do so asleep.
WORKERS ?= 2
export OMP_WAIT_POLICY ?= passive
marks = $(if $(1),($(1))$(if $(FULL), and (slow or not slow)),$(if $(FULL),slow or not slow))
pytest = python -m pytest -q$(if $(1)$(FULL), -m "$(marks)")
parallel = -n $(WORKERS) --dist $(1)

.PHONY: gpu wheel demo test test-isas test-integrations lint bench bench-vllm sanitize build nightly clean
.DEFAULT_GOAL := test

build: build/.installed

# pip only brings uv, and only once: where CUTLASS's headers lie it would complain of what they do not need.
$(VENV)/.ready: pyproject.toml scripts/venv.sh
	@PYTHON=$(PYTHON) $(SHOW) "Making $(VENV)" sh scripts/venv.sh $(VENV)
	@[ -x $(BIN)/uv ] || $(SHOW) "Installing uv" $(BIN)/pip --disable-pip-version-check --quiet --quiet install uv
	@$(SHOW) "Installing torch, CMake and Ninja" \
	  $(PIP) $(BIN)/python "$(TORCH)" cmake ninja "scikit-build-core>=0.10"
	@touch $@

$(VENV)/.cutlass: $(VENV)/.ready
	@$(SHOW) "Installing CUTLASS's headers" $(PIP) $(BIN)/python --no-deps "$(CUTLASS)"
	@touch $@

# $(call wheel,FOLDER,CUDA): both share a build directory, in which what is compiled for one serves the other.
define wheel
@rm -rf build/$(1)
@PATH="$(CURDIR)/$(BIN):$$PATH" $(SHOW) "Compiling, steps" \
  $(BIN)/python scripts/uv.py build --wheel --no-build-isolation --python $(BIN)/python --no-create-gitignore \
  -C build-dir=build/cmake-wheel -C cmake.define.AOQ_CUDA=$(2) -o build/$(1) .
@touch build/$(1)/.ready
endef
# $(call install,FOLDER)
define install
@$(SHOW) "Installing aoq and transformers" \
  $(PIP) $(BIN)/python --reinstall-package aoq "$$(ls build/$(1)/*.whl)[transformers]"
endef

build/wheel/.ready: $(VENV)/.cutlass $(CSRC) $(PYSRC)
	$(call wheel,wheel,AUTO)

build/.installed: build/wheel/.ready
	$(call install,wheel)
	@rm -f build/.installed-cpu
	@touch $@

# The same without CUDA kernels, which take nvcc a quarter of an hour: for the demo on a machine that cannot run them.
build/wheel-cpu/.ready: $(VENV)/.ready $(CSRC) $(PYSRC)
	$(call wheel,wheel-cpu,OFF)

build/.installed-cpu: build/wheel-cpu/.ready
	$(call install,wheel-cpu)
	@rm -f build/.installed
	@touch $@

build/.test-tools: build/.installed
	$(PIP) $(BIN)/python "$$(ls build/wheel/*.whl)[test,lint]"
	$(PIP) $(BIN)/python --no-deps 'nvidia-cuda-cuobjdump<14' 'nvidia-cuda-nvdisasm<14'  # to look at what nvcc made
	touch $@

build/.emulated: build/.installed
	$(call emulated,wheel,emulated)
	touch $@

# Of vector kernels those that this machine runs, and of tiles of rows few sizes.
build/.sanitized: build/.installed
	$(BIN)/cmake -S . -B build/cmake-sanitized -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DCMAKE_BUILD_TYPE=Release \
	  -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python -DAOQ_CUDA=OFF -DAOQ_SANITIZE=address,undefined \
	  -DAOQ_MM_ISAS="$$($(BIN)/python -c 'from aoq import _C; print(*_C.isas(), sep=";")');amx" \
	  -DAOQ_FEW_ROWS=$(if $(FULL),OFF,ON)
	$(call emulated,sanitized,sanitized)
	touch $@

# All of aoq where there is a GPU for it, or where it is built already.
GPU := $(wildcard /dev/nvidia[0-9]* /dev/dxg)
demo:
	@what=build/.installed; \
	[ -n "$(GPU)" ] || $(MAKE) --question --silent $$what 2>/dev/null || what=build/.installed-cpu; \
	$(MAKE) --no-print-directory $$what
	@$(BIN)/python examples/demo.py $(DEMO_ARGS)

# The suite on the machine's own kernels, then the AMX kernels on emulated tiles.
test: build/.test-tools build/.emulated
	$(BIN)/$(call pytest,not alone) $(call parallel,loadfile) --no-loadscope-reorder
	$(BIN)/$(call pytest,alone)
	PYTHONPATH=build/emulated $(BIN)/$(pytest) $(call parallel,worksteal) -p no:cacheprovider --isa amx tests/ops

# What stands on the ops, under an ISA that is forced as a user forces it. That every kernel is right, and that what was packed
# under one ISA runs under the others, `make test` proves in one process.
ISAS ?= $(if $(FULL),$$($(BIN)/python -c 'from aoq import _C; print(*_C.isas())'),avx2)
test-isas: build/.test-tools
	for isa in $(ISAS); do \
	  AOQ_ISA=$$isa $(BIN)/$(pytest) $(call parallel,worksteal) tests/tensors tests/test_quantize.py || exit; \
	done

# aoq inside the real frameworks, each in an environment of its own: FRAMEWORKS="vllm diffusers" selects.
# The longest first, so that of two at a time neither waits for it in the end.
suites := $(sort $(basename $(notdir $(wildcard tests/frameworks/*.txt))))
FRAMEWORKS ?= $(filter vllm,$(suites)) $(filter-out vllm,$(suites))
.PRECIOUS: build/env-%/.ready

test-integrations: $(FRAMEWORKS:%=test-framework-%)

test-framework-%: build/env-%/.ready build/models/SmolLM2-135M-Instruct
	HF_HUB_OFFLINE=1 PATH="$(CURDIR)/build/env-$*/bin:$$PATH" \
	  $(pytest) -p no:cacheprovider $(wildcard tests/frameworks/test_$*.py tests/frameworks/test_$*_*.py)

# What frameworks pin of torch's siblings is built for CUDA and does not load beside this torch. NAME.no-deps lists what
# would bring another torch, or more than its tests take: the rest is in NAME.txt.
build/env-%/.ready: tests/frameworks/%.txt build/wheel/.ready
	$(UV) venv --clear --python $(BIN)/python build/env-$*
	$(PIP) build/env-$* "$(TORCH)"
	$(PIP) build/env-$* pytest hypothesis -r $< build/wheel/*.whl
	$(UV) pip uninstall --python build/env-$* torchvision torchaudio torchcodec
	$(if $(wildcard tests/frameworks/$*.no-deps), \
	  $(PIP) build/env-$* --no-deps -r tests/frameworks/$*.no-deps)
	touch $@

$(foreach file,$(wildcard tests/frameworks/*.no-deps),$(eval build/env-$(basename $(notdir $(file)))/.ready: $(file)))

# The wheel beside another torch than it was built with, and in another Python: make test-torch-2.10 TORCH_PYTHON=python3.10.
# Several GB each: for x86, PyPI has builds for CUDA alone. libaoq_cuda loads there too.
TORCH_PYTHON ?= $(PYTHON)
torch_env = build/env-torch-$*-$(notdir $(TORCH_PYTHON))

test-torch-%: build/wheel/.ready build/models/SmolLM2-135M-Instruct
	$(UV) venv --clear --python $(TORCH_PYTHON) $(torch_env)
	$(PIP) $(torch_env) "torch==$*.*" "$$(ls build/wheel/*.whl)[test]"
	$(torch_env)/bin/python -m aoq
	HF_HUB_OFFLINE=1 PATH="$(CURDIR)/$(torch_env)/bin:$$PATH" \
	  $(pytest) -p no:cacheprovider tests/ops tests/tensors tests/integrations tests/test_*.py
	$(torch_env)/bin/python examples/demo.py --quick

build/models/SmolLM2-135M-Instruct: | build/.installed
	$(BIN)/python examples/get_model.py

lint: build/.test-tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(find csrc tests/cuda -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

# Out-of-bounds, uninitialised and undefined behaviour in every kernel, the AMX ones on emulated tiles.
sanitize: build/.test-tools build/.sanitized
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=build/sanitized \
	$(BIN)/$(pytest) $(call parallel,worksteal) -p no:cacheprovider tests/ops
	$(BIN)/python tests/fuzz/fuzz_ops.py --calls $(FUZZ_CALLS) --seed $(FUZZ_SEED)

# Calls of every op, well-formed and damaged, against guard pages, from a seed that is printed: at night of the day, else
# the same, so that a change is judged by what it changed.
FUZZ_CALLS ?= $(if $(FULL),1000000,100000)
FUZZ_SEED  ?= $(if $(FULL),$(shell date +%Y%m%d)00000,0)

# On a machine with a CUDA device and a torch for it: its tests and figures, in under ten minutes; GPU_ARGS="--only tests"
# chooses a stage. GPU_PYTHON has that torch. Takes the wheel that `make wheel` makes, on any machine with nvcc, or builds this checkout.
GPU_PYTHON ?= python3
gpu:
	$(GPU_PYTHON) scripts/gpu.py $(GPU_ARGS)

wheel: build/wheel/.ready

# aoq beside every peer, then README's tables and docs/benchmarks. vLLM takes part where `make test-framework-vllm` has
# made its environment. As root at real-time priority, which on a busy machine is steadier.
# BENCH_SHAPES=4096x4096,14336x4096,4096x14336,576x1536,1536x576 takes half an hour.
BENCH_SHAPES ?= 4096x4096
BENCH_ARGS   ?= $(if $(filter 0,$(shell id -u)),--realtime)
bench = build/env-bench/bin/aoq bench $(BENCH_ARGS)

bench: build/env-bench/.ready build/models/SmolLM2-135M-Instruct
	$(bench) --shapes $(BENCH_SHAPES) --m 1,4,16,64,256,1024 --json docs/benchmarks/cpu.json \
	  --plot docs/benchmarks/cpu.png $(if $(wildcard build/env-vllm/.ready),--python vllm=build/env-vllm)
	$(bench) --model build/models/SmolLM2-135M-Instruct --random-model llama-3.2-1b --group-size 64 \
	  --json docs/benchmarks/models.json --compile
	$(bench) --only aoq --isa avx2 --isa avxvnni --isa avx512 --m 1,4,16,64,256 --json docs/benchmarks/isas.json
	$(bench) --only aoq --op int4_mm --op int8_int4_mm --contenders benchmarks/int4_variants.py --m 1,4,16,64,256 \
	  --json docs/benchmarks/variants.json
	$(bench) --only aoq --op int4_mm --op int8_int4_mm --op int8_mm --threads 1 --m 1,4,16,64,256 \
	  --json docs/benchmarks/one_thread.json
	build/env-bench/bin/python scripts/benchmark_tables.py

# vLLM under aoq, its own int4, torchao and bf16, then docs/vllm.md's table: about an hour. BENCH_VLLM_ARGS="--only int4" is a part.
bench-vllm: build/env-vllm/.ready build/models/SmolLM2-135M-Instruct
	HF_HUB_OFFLINE=1 build/env-vllm/bin/python benchmarks/vllm_throughput.py $(BENCH_VLLM_ARGS)

# All that CI runs, with what it leaves out: hours.
nightly:
	FULL=1 .ci/run

clean:
	rm -rf build dist
