# make demo   the main job on a real chat model: quantize, save, reload, answer; size, quality and speed beside bf16
# make test   everything that a machine without a GPU can prove
# make gpu    on a machine with one: its tests, figures of ops and of whole models
# Also: build, wheel, lint, bench, bench-vllm, sanitize, test-integrations, test-torch-2.10, clean. Each makes what it needs, from nothing.

PYTHON ?= python3
TORCH  ?= torch==2.13.0
CUTLASS := nvidia-cutlass==4.2.0.0# headers; what else it asks for, nothing here needs
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip --disable-pip-version-check --quiet

CSRC   := $(shell find csrc cmake third_party -type f) CMakeLists.txt pyproject.toml
PYSRC  := $(shell find python -name '*.py' -o -name py.typed)
# A variant of the package beside the installed one: $(call variant,NAME,CMAKE DEFINES)
variant = $(PIP) install --no-build-isolation --no-deps --upgrade --target build/$(1) \
          -C build-dir=build/cmake-$(1) $(foreach d,$(2),-C cmake.define.$(d)) .

.PHONY: gpu wheel demo test test-integrations lint bench bench-vllm sanitize build clean
.DEFAULT_GOAL := test

build: build/.installed

$(VENV)/.ready: pyproject.toml scripts/venv.sh
	PYTHON=$(PYTHON) sh scripts/venv.sh $(VENV)
	$(PIP) install "$(TORCH)" cmake ninja "scikit-build-core>=0.10"
	$(PIP) install --no-deps "$(CUTLASS)"
	touch $@

build/.installed: $(VENV)/.ready $(CSRC) $(PYSRC)
	$(PIP) install --no-build-isolation '.[transformers]'
	mkdir -p build && touch $@

build/.test-tools: $(VENV)/.ready build/.installed
	$(PIP) install --no-build-isolation '.[test,lint]'
	$(PIP) install --no-deps 'nvidia-cuda-cuobjdump<14' 'nvidia-cuda-nvdisasm<14'  # to look at what nvcc made
	touch $@

build/.emulated: build/.installed
	$(call variant,emulated,AOQ_EMULATE_AMX=ON AOQ_CUDA=OFF)
	touch $@

build/.sanitized: build/.installed
	$(call variant,sanitized,AOQ_EMULATE_AMX=ON AOQ_CUDA=OFF AOQ_SANITIZE=address$(comma)undefined)
	touch $@
comma := ,

demo: build
	$(BIN)/python examples/demo.py $(DEMO_ARGS)

# The suite on the machine's own kernels, then the ops again with the AMX kernels on emulated tiles.
test: build/.test-tools build/.emulated
	$(BIN)/python -m pytest -q
	PYTHONPATH=build/emulated $(BIN)/python -m pytest -q -p no:cacheprovider tests/ops

# aoq inside the real frameworks, each in an environment of its own: FRAMEWORKS="vllm diffusers" selects.
FRAMEWORKS ?= $(sort $(basename $(notdir $(wildcard tests/frameworks/*.txt))))
.PRECIOUS: build/env-%/.ready

test-integrations: $(FRAMEWORKS:%=test-framework-%)

test-framework-%: build/env-%/.ready build/models/SmolLM2-135M-Instruct
	HF_HUB_OFFLINE=1 PATH="$(CURDIR)/build/env-$*/bin:$$PATH" \
	  python -m pytest -q -p no:cacheprovider $(wildcard tests/frameworks/test_$*.py tests/frameworks/test_$*_*.py)

# What frameworks pin of torch's siblings is built for CUDA and does not load beside this torch. NAME.no-deps lists what
# would bring another torch, or more than its tests take: the rest is in NAME.txt.
build/env-%/.ready: tests/frameworks/%.txt build/wheel/.ready
	PYTHON=$(PYTHON) sh scripts/venv.sh build/env-$*
	build/env-$*/bin/pip --disable-pip-version-check --quiet install "$(TORCH)"
	build/env-$*/bin/pip --disable-pip-version-check --quiet install pytest hypothesis -r $< build/wheel/*.whl
	build/env-$*/bin/pip --disable-pip-version-check --quiet install --force-reinstall --no-deps build/wheel/*.whl
	build/env-$*/bin/pip --quiet uninstall -y torchvision torchaudio torchcodec
	$(if $(wildcard tests/frameworks/$*.no-deps), \
	  build/env-$*/bin/pip --disable-pip-version-check --quiet install --no-deps -r tests/frameworks/$*.no-deps)
	touch $@

$(foreach file,$(wildcard tests/frameworks/*.no-deps),$(eval build/env-$(basename $(notdir $(file)))/.ready: $(file)))

# The wheel beside another torch than it was built with, and in another Python: make test-torch-2.10 TORCH_PYTHON=python3.10.
# Several GB each: for x86, PyPI has builds for CUDA alone. libaoq_cuda loads there too.
TORCH_PYTHON ?= $(PYTHON)
torch_env = build/env-torch-$*-$(notdir $(TORCH_PYTHON))

test-torch-%: build/wheel/.ready build/models/SmolLM2-135M-Instruct
	PYTHON=$(TORCH_PYTHON) sh scripts/venv.sh $(torch_env)
	$(torch_env)/bin/pip --disable-pip-version-check --quiet install "torch==$*.*" "$$(ls build/wheel/*.whl)[test]"
	$(torch_env)/bin/pip --disable-pip-version-check --quiet install --force-reinstall --no-deps build/wheel/*.whl
	$(torch_env)/bin/python -m aoq
	HF_HUB_OFFLINE=1 PATH="$(CURDIR)/$(torch_env)/bin:$$PATH" \
	  python -m pytest -q -p no:cacheprovider tests/ops tests/tensors tests/integrations tests/test_*.py
	$(torch_env)/bin/python examples/demo.py --quick

build/wheel/.ready: build/.installed
	rm -rf build/wheel
	$(PIP) wheel --no-build-isolation --no-deps -w build/wheel .
	touch $@

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
	$(BIN)/python -m pytest -q -p no:cacheprovider tests/ops

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

clean:
	rm -rf build dist
