from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, ResNetConfig, ResNetModel
from typer.testing import CliRunner, Result

import aoq
from aoq import (
    _C,
    AOBaseConfig,
    FqnToConfig,
    Int4Tensor,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt4WeightConfig,
    Int8Tensor,
    MappingType,
    cli,
    config_to_dict,
    cpu,
)
from aoq.cli import app
from aoq.evaluation import Quality
from aoq.storage.checkpoint import stored_weights, weight_files
from example_models import real_model, tiny_model
from widths import representative

ENVIRONMENT = {**os.environ, "COLUMNS": "200"}


def run(*args: object) -> Result:
    return CliRunner(env=ENVIRONMENT).invoke(app, [str(arg) for arg in args])


def run_process(*args: object, code: str = "") -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, after `code`."""
    script = f"import sys; sys.argv[0] = 'aoq'\n{code}\nfrom aoq.cli import main; main()"
    command = [sys.executable, "-c", script, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)


def assert_fails(result: Result, *texts: str) -> None:
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("aoq: error: ")
    for text in texts:
        assert text in line


def with_tokenizer(directory: Path) -> Path:
    """Adds a tokenizer that makes a token of every character."""
    vocabulary = {chr(i): i for i in range(160)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(directory)
    return directory


def test_quantize_info_eval(tmp_path: Path) -> None:
    source = with_tokenizer(tiny_model(tmp_path, tied=True))
    result = run("quantize", source, "-o", tmp_path / "out", "--group-size", 32, "--hqq")
    assert result.exit_code == 0, result.output
    assert "quantized 14 weights" in result.output
    assert "written to" in result.output
    assert not result.stderr  # no progress bar where there is no terminal

    shown = run("info", tmp_path / "out")
    assert shown.exit_code == 0
    (row,) = (line.split() for line in shown.output.splitlines() if "gate_proj" in line)
    # 80 x 112 codes of 4 bits and, for each of 112 rows and 3 groups, two numbers of 16 bits
    assert row == ["gate_proj", "int4", "g32", "2", "17,920", "5.20", "0.0"]
    assert "bfloat16" in shown.output

    evaluated = run("eval", tmp_path / "out", "--against", source, "--windows", 2, "--length", 64, "--json")
    assert evaluated.exit_code == 0, evaluated.stderr
    quality = json.loads(evaluated.stdout)
    assert quality["tokens"] == 126
    assert 0 < quality["kl"] < 1
    table = run("eval", tmp_path / "out", "--against", source, "--windows", 2, "--length", 64).output
    assert f"{quality['perplexity']:.2f}" in table
    assert "top-1" in table


def test_options(tmp_path: Path) -> None:
    source = tiny_model(tmp_path)
    options = ["--symmetric", "--group-size", "16", "--skip", "mlp", "--dtype", "fp32"]
    run("quantize", source, "-o", tmp_path / "sym", *options)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "sym")
    w = model.model.layers[0].self_attn.q_proj.weight
    assert isinstance(w, Int4Tensor)
    assert (w.group_size, w.zero_point, w.dtype) == (16, None, torch.float32)
    assert not isinstance(model.model.layers[0].mlp.up_proj.weight, Int4Tensor)

    rules = FqnToConfig({r"re:.*q_proj": Int4WeightOnlyConfig(mapping_type=MappingType.SYMMETRIC)})
    (tmp_path / "rules.json").write_text(json.dumps(config_to_dict(rules)))
    result = run("quantize", source, "-o", tmp_path / "rules", "--config", tmp_path / "rules.json", "--max-shard", 1e-5)
    assert "quantized 2 weights" in result.output
    assert len(list((tmp_path / "rules").glob("*.safetensors"))) > 2
    assert "int4 g128" in run("info", tmp_path / "rules").output


@pytest.mark.parametrize(
    ("options", "config", "shown"),
    [
        *(([name], config, config.quantize(torch.zeros(16, 64)).label) for name, config in representative().items()),
        (["int8-int4", "--group-size", "16"], Int8DynamicActivationInt4WeightConfig(16), "int8-int4 g16"),
        (
            ["int8-int4", "--asymmetric"],
            Int8DynamicActivationInt4WeightConfig(mapping_type=MappingType.ASYMMETRIC),
            "int8-int4 g32",
        ),
    ],
)
def test_formats_by_name(tmp_path: Path, options: list[str], config: AOBaseConfig, shown: str) -> None:
    result = run("quantize", tiny_model(tmp_path), "-o", tmp_path / "out", "--config", *options)
    assert result.exit_code == 0, result.output
    assert shown in run("info", tmp_path / "out").output
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    weight = model.model.layers[0].self_attn.q_proj.weight
    assert type(weight) is type(config.quantize(torch.zeros(16, 16)))
    assert model.config.quantization_config.quant_type == config


def test_dtype_auto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = with_tokenizer(tiny_model(tmp_path))
    run("quantize", source, "-o", tmp_path / "stored")
    monkeypatch.setattr(cpu, "cpu_features", lambda: frozenset({"avx2"}))
    for dtype in ("auto", "bf16"):
        assert run("quantize", source, "-o", tmp_path / dtype, "--dtype", dtype).exit_code == 0
    stored, auto, bf16 = (load_file(tmp_path / name / "model.safetensors") for name in ("stored", "auto", "bf16"))
    assert all(bf16[name].equal(tensor) for name, tensor in stored.items())
    for name, tensor in auto.items():  # codes and scales are the same, the rest is the same in fp32
        quantized = "_weight_" in name
        assert tensor.dtype is (stored[name].dtype if quantized else torch.float32)
        assert tensor.equal(stored[name].to(tensor.dtype))
    config = json.loads((tmp_path / "auto" / "config.json").read_text())
    assert config["dtype"] == "float32"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "auto")
    assert {param.dtype for param in model.parameters()} == {torch.float32}

    # What `aoq eval` computes in: seen by the model that it evaluates.
    seen = []
    monkeypatch.setattr(
        "aoq.evaluation.evaluate",
        lambda model, windows, reference: seen.append((model.dtype, reference.dtype)) or Quality(1.0, 1, 1.0, 0.0, 1.0),
    )
    for options in ([], ["--dtype", "bf16"]):
        result = run("eval", tmp_path / "stored", "--against", source, "--windows", 1, "--length", 64, *options)
        assert result.exit_code == 0, result.stderr
    assert seen == [(torch.float32,) * 2, (torch.bfloat16,) * 2]


def test_installation() -> None:
    result = run("info")
    assert result.exit_code == 0
    for text in (aoq.__version__, torch.__version__, _C.isa(), "CUDA", *_C.kernels("int4_mm")):
        assert text in result.output
    environment = ENVIRONMENT | {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # which another test may have set
    module = subprocess.run([sys.executable, "-m", "aoq"], capture_output=True, text=True, env=environment, check=True)
    assert module.stdout.split() == result.stdout.split()


@pytest.mark.parametrize(
    ("driver", "answer"),
    [
        ((12, 8), "no: aoq is built with nvcc 13.0.88, and the driver here is for CUDA 12.8"),
        ((13, 0), "yes: H100, CUDA 12.8"),
        ((14, 1), "yes: H100, CUDA 12.8"),
    ],
)
def test_a_driver_older_than_our_cuda(driver: tuple[int, int], answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_C, "build_info", lambda: {"cuda": "nvcc 13.0.88 for sm80 sm89 sm90a"})
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H100")
    monkeypatch.setattr(cli, "_driver_cuda", lambda: driver)
    assert cli._cuda() == answer


def test_version() -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"aoq {aoq.__version__}\n")


@pytest.mark.parametrize("command", ["quantize", "convert", "eval"])
@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("raise metadata.PackageNotFoundError(name)", "this needs transformers: pip install 'aoq[transformers]'"),
        ("return '4.57.1'", "aoq works with transformers>=5.16, got 4.57.1: pip install -U 'aoq[transformers]'"),
    ],
)
def test_without_transformers_it_says_what_to_install(tmp_path: Path, command: str, code: str, text: str) -> None:
    """Also where importing it would fail with something else first."""
    fake = f"""
import sys
from importlib import metadata
version = metadata.version
def fake(name):
    if name != "transformers":
        return version(name)
    {code}
metadata.version = fake
sys.modules["transformers.utils"] = None
"""
    options = [tmp_path] if command == "eval" else [tmp_path, "-o", tmp_path / "out"]
    done = run_process(command, *options, code=fake)
    assert (done.returncode, done.stderr) == (1, f"aoq: error: {text}\n")


def test_errors(tmp_path: Path) -> None:
    source, out = tiny_model(tmp_path), tmp_path / "out"
    assert_fails(run("quantize", tmp_path / "none", "-o", out), "none: no such file")
    assert_fails(run("quantize", source, "-o", source), "exists already")
    assert_fails(run("quantize", source, "-o", out, "--config", "int9"), "--config", "int9")
    assert_fails(run("quantize", source, "-o", out, "--group-size", 20), "group_size", "20")
    assert_fails(run("quantize", source, "-o", out, "--config", "int8", "--group-size", 32), "--group-size", "int8")
    assert_fails(run("quantize", source, "-o", out, "--config", "int8-int4", "--hqq"), "--hqq", "int8-int4")
    assert_fails(run("quantize", source, "-o", out, "--hqq", "--symmetric"), "use_hqq")
    assert_fails(
        run("quantize", source, "-o", out, "--config", "fp8", "--asymmetric"), "--asymmetric", "int8-int4", "fp8"
    )
    assert_fails(run("quantize", source, "-o", out, "--dtype", "int7"), "--dtype", "int7")
    assert_fails(run("quantize", source, "-o", out, "--dtype", ""), "--dtype: expected one of auto")
    assert_fails(run("eval", source, "--dtype", "int7"), "--dtype", "auto, bf16, fp16, fp32", "int7")
    (tmp_path / "unknown.json").write_text('{"_type": "Int5Config", "_data": {}}')
    assert_fails(
        run("quantize", source, "-o", out, "--config", tmp_path / "unknown.json"),
        "unknown.json",
        "Int5Config",
        "Int4WeightOnlyConfig",
    )
    assert_fails(run("info", tmp_path / "none"), "none: no such directory")
    assert_fails(run("eval", tmp_path / "none"), "none: no such directory")
    assert_fails(run("eval", with_tokenizer(source), "--against", tmp_path / "none"), "none: no such directory")
    assert_fails(run("quantize", source, "-o", out, "--skip", "mpl"), "skip: 'mpl' matches no module (did you mean mlp")
    assert_fails(run("quantize", source, "-o", "/proc/none/out"), "/proc/none/out: cannot be made")
    assert not out.exists()


@pytest.mark.parametrize("value", ["0", "-1", "inf", "nan"])
def test_max_shard(tmp_path: Path, value: str) -> None:
    for command in ("quantize", "convert"):
        result = run(command, tiny_model(tmp_path), "-o", tmp_path / "out", "--max-shard", value)
        assert_fails(result, "--max-shard: expected GB above 0", f"got {value}")


def test_values_without_sense(tmp_path: Path) -> None:
    source, out = tiny_model(tmp_path), tmp_path / "out"
    assert_fails(run("quantize", source, "-o", out, "--skip", ""), "skip: '' matches no module")
    for config in ("int4", "int8-int4", "int3"):
        result = run("quantize", source, "-o", out, "--config", config, "--group-size", 10**20)
        assert_fails(result, "group_size: expected at most 2147483647, got 100000000000000000000")
    deep = tmp_path / "deep.json"
    deep.write_text("[" * 100_000)
    assert_fails(run("quantize", source, "-o", out, "--config", deep), "deep.json", "nested too deep")
    assert not out.exists()


@pytest.mark.parametrize(
    "error",
    [
        AttributeError("x"),
        KeyError("weight"),
        IndexError("3"),
        OverflowError("big"),
        RecursionError(""),
        AssertionError(),
    ],
)
def test_no_error_is_a_traceback(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor a mere key: one that nobody foresaw says what it is and where."""

    def failing(files: object) -> None:
        raise error

    monkeypatch.setattr(cli, "weight_files", failing)
    assert_fails(run("info", tmp_path), type(error).__name__, "cli.py:", str(error), "bug")


def test_aoq_that_cannot_be_imported() -> None:
    code = "import sys; sys.argv = ['aoq', 'info']; from aoq_autoload.command import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**ENVIRONMENT, "AOQ_ISA": "z80"}
    )
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("aoq: error: AOQ_ISA=z80 is not an ISA")


def test_verify(tmp_path: Path) -> None:
    source, out = tiny_model(tmp_path), tmp_path / "out"
    run("quantize", source, "-o", out, "--group-size", 32)
    count = len(load_file(out / "model.safetensors"))
    result = run("info", out, "--verify")
    assert result.exit_code == 0, result.stderr
    assert f"{count} tensors are as they were written\n" in result.output
    data = bytearray((out / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (out / "model.safetensors").write_bytes(data)
    assert run("info", out).exit_code == 0
    assert_fails(run("info", out, "--verify"), "model.safetensors: ", "data are not those that were written")
    assert_fails(run("info", source, "--verify"), "has no hashes")
    assert_fails(run("info", "--verify"), "--verify")


def test_skip_leaves_modules_besides_the_output_layer(tmp_path: Path) -> None:
    source = tiny_model(tmp_path)
    result = run("quantize", source, "-o", tmp_path / "out", "--skip", "mlp", "--skip", "layers.1")
    assert "quantized 4 weights" in result.output
    stored = stored_weights(weight_files(tmp_path / "out"))
    assert {name for name, weight in stored.items() if weight.description} == {
        f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkvo"
    }
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["modules_to_not_convert"] == ["layers.1", "lm_head", "mlp"]
    # Embeddings and output layer, when they are asked for, are not left by default.
    result = run("quantize", source, "-o", tmp_path / "all", "--skip", "mlp", "--include-embedding")
    assert "quantized 10 weights" in result.output


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_embedding_in_a_format_of_its_own(tmp_path: Path, tied: bool) -> None:
    source = tiny_model(tmp_path, tied=tied)
    result = run("quantize", source, "-o", tmp_path / "out", "--group-size", 32, "--embedding", "int8-weight")
    assert f"quantized {15 if tied else 16} weights" in result.output
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert isinstance(embedding, Int8Tensor) and isinstance(head, Int8Tensor)
    assert (embedding is head) == tied
    assert isinstance(model.get_parameter("model.layers.0.mlp.up_proj.weight"), Int4Tensor)
    assert torch.isfinite(model(torch.arange(8)[None]).logits).all()
    assert_fails(run("quantize", source, "-o", tmp_path / "no", "--embedding", "int9"), "--embedding", "int9")


def test_a_model_without_linears(tmp_path: Path) -> None:
    ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])).save_pretrained(tmp_path / "resnet")
    result = run("quantize", tmp_path / "resnet", "-o", tmp_path / "out")
    assert_fails(result, "none of its weights would be quantized", "a convolution")
    assert not (tmp_path / "out").exists()


def test_quantized_weights_that_config_json_says_nothing_of(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("quantize", with_tokenizer(tiny_model(tmp_path)), "-o", out)
    config = json.loads((out / "config.json").read_text())
    assert config.pop("quantization_config")["quant_method"] == "aoq"
    (out / "config.json").write_text(json.dumps(config))
    assert_fails(run("eval", out), "out: has quantized weights, but its config.json has no quantization_config")
    assert_fails(
        run("quantize", out, "-o", tmp_path / "twice"), "out: is quantized already, though its config.json does not"
    )
    (out / "config.json").unlink()
    assert_fails(run("eval", out), "out: no config.json in it")


@pytest.mark.parametrize("damage", ["truncated", "part", "weight", "type", "config"])
def test_damaged_checkpoint(tmp_path: Path, damage: str) -> None:
    out = tmp_path / "out"
    run("quantize", with_tokenizer(tiny_model(tmp_path)), "-o", out, "--group-size", 32)
    file = out / "model.safetensors"
    expected = "model.safetensors"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "config":
        (out / "config.json").write_text('{"model_type": "llama"')
        expected = "config.json: not JSON"
    elif damage == "type":
        text = (out / "config.json").read_text().replace("Int4WeightOnlyConfig", "Int5WeightOnlyConfig")
        (out / "config.json").write_text(text)
        expected = "unknown _type 'Int5WeightOnlyConfig'; known"
    else:
        from safetensors import safe_open

        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata()
        tensors = load_file(file)
        name = "model.layers.0.mlp.up_proj._weight_scale" if damage == "part" else "model.norm.weight"
        del tensors[name]
        save_file(tensors, file, metadata)
        expected = name
    assert_fails(run("eval", out), expected)


def test_full_disk(tmp_path: Path) -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))"
    source = tiny_model(tmp_path)
    result = run_process("quantize", source, "-o", tmp_path / "out", code=limit)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"aoq: error: {tmp_path / 'out'}")
    assert ".out." not in line  # the scratch directory is nobody's business
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped(tmp_path: Path, number: signal.Signals) -> None:
    slow = """
import time
from aoq import Int4WeightOnlyConfig
quantize = Int4WeightOnlyConfig.quantize
Int4WeightOnlyConfig.quantize = lambda self, w: (w.is_meta or time.sleep(0.5), quantize(self, w))[1]
"""
    source = tiny_model(tmp_path)
    script = f"import sys; sys.argv[0] = 'aoq'\n{slow}\nfrom aoq.cli import main; main()"
    command = [sys.executable, "-c", script, "quantize", str(source), "-o", str(tmp_path / "out")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode not in (0, -number)
    assert "Traceback" not in stderr
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


@pytest.mark.model
def test_real_model(tmp_path: Path) -> None:
    result = run("quantize", real_model(), "-o", tmp_path / "out", "--group-size", 64)
    assert "quantized 210 weights: 212.3 MB -> 59.7 MB, 4.50 bits per weight" in result.output
    quality = json.loads(run("eval", tmp_path / "out", "--windows", 1, "--json").stdout)
    assert quality["perplexity"] < 25
