"""aoq inside SGLang: its registry, its layers, and its server, on the CPU.

SGLang's own kernels for CPUs are not on PyPI: `sglang_stand_ins` has what it takes to import SGLang without them.
"""

import concurrent.futures
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import openai
import pytest
import torch

os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).with_name("sglang_stand_ins")), *filter(None, [os.environ.get("PYTHONPATH")])]
)
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).with_name("sglang_stand_ins")))

import before_torchvision  # noqa: F401
import sglang.srt.layers.linear as linear_layers
import sglang.srt.layers.quantization as quantization
import sglang.srt.layers.vocab_parallel_embedding as vocab_layers
from serving_tests import (  # noqa: F401 (tests and their fixtures)
    CONFIGS,
    INT8,
    MIXED,
    PROMPT,
    QUESTION,
    TOLERANCE,
    Layers,
    check_interrupt,
    checkpoint_of_each,
    edit,
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
from sglang.srt.arg_groups.choices import QUANTIZATION_CHOICES
from sglang.srt.plugins import load_plugins
from sglang.srt.runtime_context import get_parallel
from transformers import AutoConfig

from aoq import FqnToConfig, config_to_dict
from aoq.integrations.sglang import AoqMethod, AoqSglangConfig
from aoq.storage.convert import quantize_checkpoint
from example_models import real_model


def sglang_config(directory: Path, **quantization) -> AoqSglangConfig:
    hf_config = AutoConfig.from_pretrained(str(directory))
    return AoqSglangConfig.from_config((quantization or hf_config.quantization_config) | {"hf_config": hf_config})


@pytest.fixture
def framework():
    return Layers(linear_layers, vocab_layers, sglang_config, AoqMethod)


@pytest.fixture(params=[1, 2])
def ranks(request):
    """Yields a function for each worker, which makes this process that one."""
    with get_parallel().override(tp_size=request.param, tp_rank=0):
        yield [lambda rank=rank: get_parallel()._overrides.update(tp_rank=rank) for rank in range(request.param)]


# ---- the plugin


@pytest.fixture
def plugin():
    load_plugins()


def test_the_plugin_registers_it(plugin):
    assert quantization.get_quantization_config("aoq") is AoqSglangConfig
    assert "aoq" in QUANTIZATION_CHOICES


def test_the_plugin_registers_it_for_amx(plugin, monkeypatch):
    monkeypatch.setattr(quantization, "cpu_has_amx_support", lambda: True)
    assert quantization.get_quantization_config("aoq") is AoqSglangConfig


def test_amx_leaves_a_quantized_head_alone(tmp_path, ranks, monkeypatch):
    """SGLang packs output layers itself there, of which bfloat16 is stored."""
    monkeypatch.setattr(vocab_layers, "_is_cpu_amx_available", True)
    config = sglang_config(tiny_llama(tmp_path / "float"), **INT8, include_embedding=True)
    head = vocab_layers.ParallelLMHead(190, 192, params_dtype=torch.bfloat16, quant_config=config, prefix="lm_head")
    assert isinstance(head.quant_method, AoqMethod)


def test_a_head_that_shares_the_embedding(tmp_path, ranks):
    ranks[-1]()
    config = sglang_config(tiny_llama(tmp_path / "float", tied=True), **INT8, include_embedding=True)
    embedding = vocab_layers.VocabParallelEmbedding(
        190, 192, params_dtype=torch.float32, quant_config=config, prefix="model.embed_tokens"
    )
    head = vocab_layers.ParallelLMHead(190, 192, params_dtype=torch.float32, quant_config=config, prefix="lm_head")
    assert head.tie_weights(embedding) is head
    embedding.weight.weight_loader(embedding.weight, torch.randn(190, 192))
    for layer in (embedding, head):
        layer.quant_method.process_weights_after_loading(layer)
    x = torch.randn(3, 192)
    assert torch.equal(head.quant_method.apply(head, x), embedding.weight.linear(x, None))


def test_a_plain_head_beside_a_quantized_embedding(tmp_path):
    """The config says that they are tied; SGLang would not load the head."""
    rules = FqnToConfig({"model.embed_tokens": CONFIGS["int8"]})
    quantize_checkpoint(tiny_llama(tmp_path / "float", tied=True), tmp_path / "aoq", rules)
    edit(tmp_path / "aoq", lambda tensors, _: tensors.update({"lm_head.weight": torch.randn(190, 192)}))
    hf_config = AutoConfig.from_pretrained(str(tmp_path / "aoq"))
    assert hf_config.tie_word_embeddings
    AoqSglangConfig.from_config(hf_config.quantization_config | {"hf_config": hf_config})
    assert not hf_config.tie_word_embeddings


def test_an_older_sglang(tmp_path):
    (tmp_path / "sglang").mkdir()
    (tmp_path / "sglang/__init__.py").write_text("__version__ = '0.4.0'")
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", "import aoq.integrations.sglang"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].startswith(
        "ImportError: aoq needs a whole SGLang of 0.5.23 or later, this is 0.4.0: "
    )


# ---- the server


CPU = [
    "--device",
    "cpu",
    "--attention-backend",
    "torch_native",
    "--grammar-backend",
    "none",
    "--disable-overlap-schedule",
]


def start(directory: Path, tmp_path: Path, *args: str) -> tuple[subprocess.Popen, int, Path]:
    """`sglang serve`: the process, its port, its log."""
    port, log = free_port(), tmp_path / "sglang.log"
    sglang = Path(sys.executable).with_name("sglang")
    command = [str(sglang), "serve", "--model-path", str(directory), "--port", str(port), *CPU]
    command += ["--max-total-tokens", "4096", "--context-length", "256", *args]
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    return process, port, log


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a server of the real model, which quantizes it as it loads it."""
    settings = {"quant_method": "aoq", "quant_type": {"default": config_to_dict(CONFIGS["int8"])}}
    override = json.dumps({"quantization_config": settings | {"include_embedding": True}})
    args = ["--quantization", "aoq", "--json-model-override-args", override, "--served-model-name", "smol"]
    process, port, log = start(real_model(), tmp_path_factory.mktemp("server"), *args)
    try:
        wait_for(process, port, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        stop(process)


def test_openai_client_and_streaming(server):
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="none")
    settings = {"model": "smol", "messages": QUESTION, "max_tokens": 20, "temperature": 0}
    whole = client.chat.completions.create(**settings).choices[0].message.content
    pieces = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**settings, stream=True)]
    assert "4" in whole and "".join(pieces) == whole and len(pieces) > 3


def test_8_at_once(server):
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="none")

    def complete(i: int) -> str:
        prompt = f"{i}, {i + 1}, {i + 2}, {i + 3},"
        return client.completions.create(model="smol", prompt=prompt, max_tokens=8, temperature=0).choices[0].text

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        texts = [*pool.map(complete, range(1, 9))]
    assert sum(text.strip().startswith(str(i + 4)) for i, text in enumerate(texts, 1)) > 5


def sglang_logprobs(address: str) -> torch.Tensor:
    """What SGLang gives each next token of the prompt: [tokens - 1, vocabulary]."""
    body = {"input_ids": PROMPT, "sampling_params": {"temperature": 0, "max_new_tokens": 1}}
    body |= {"return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 190}
    request = urllib.request.Request(
        f"{address}/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    answer = json.load(urllib.request.urlopen(request))
    rows = answer["meta_info"]["input_top_logprobs"][1:]
    return torch.tensor([[logprob for logprob, _, _ in sorted(row, key=lambda entry: entry[1])] for row in rows])


def test_two_workers_are_the_same_as_transformers(tmp_path, monkeypatch):
    monkeypatch.setenv("SGLANG_CPU_OMP_THREADS_BIND", "0|1")
    quantize_checkpoint(tiny_llama(tmp_path / "float"), tmp_path / "aoq", MIXED)
    args = ["--skip-tokenizer-init", "--dtype", "float32", "--tensor-parallel-size", "2"]
    process, port, log = start(tmp_path / "aoq", tmp_path, *args)
    try:
        wait_for(process, port, log)
        expected = transformers_logprobs(tmp_path / "aoq")
        assert expected.std() > 1, "the model tells tokens apart"
        got = sglang_logprobs(f"http://127.0.0.1:{port}")
        torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE["mixed"])
    finally:
        stop(process)


def test_a_server_on_a_broken_checkpoint(tmp_path):
    quantize_checkpoint(tiny_llama(tmp_path / "float"), tmp_path / "aoq", CONFIGS["int8"])
    file = tmp_path / "aoq/model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    process, _, log = start(tmp_path / "aoq", tmp_path, "--skip-tokenizer-init")
    try:
        assert process.wait(120) != 0
    finally:
        stop(process)
    assert log.read_text().count("model.safetensors: damaged, or not a safetensors file") == 1


def test_ctrl_c_while_it_loads(tmp_path):
    quantize_checkpoint(tiny_llama(tmp_path / "float"), tmp_path / "aoq", CONFIGS["int8"])
    process, _, log = start(tmp_path / "aoq", tmp_path, "--skip-tokenizer-init")
    check_interrupt(process, log, "Load weight begin")


def test_example():
    script = Path(__file__).parents[2] / "examples" / "sglang.sh"
    env = os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    command = ["sh", str(script), str(real_model()), str(free_port()), *CPU]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"id"')]
    assert "4" in answers[0]["choices"][0]["message"]["content"]
