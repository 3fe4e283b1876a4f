"""compressed-tensors' checkpoints, packed and unpacked by that package, on aoq's kernels."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("compressed_tensors")

from compressed_tensors.compressors.naive_quantized import FloatQuantizationCompressor, IntQuantizationCompressor
from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file as load_plain
from transformers import AutoModelForCausalLM

from aoq import Float8Tensor, FloatxTensor, Int4Tensor, Int8Int4Tensor, Int8Tensor, IntxTensor
from aoq.storage.checkpoint import stored_weights, weight_files
from aoq.storage.convert import convert_checkpoint
from aoq.storage.safetensors import load_file
from foreign_checkpoints import Array, Writer, change, fp4, reference, set_config, write_checkpoint

IDS = torch.arange(1, 25).reshape(2, 12)
PACKED, INT, FLOAT = PackedQuantizationCompressor, IntQuantizationCompressor, FloatQuantizationCompressor
TOKEN = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
FP8_TOKEN = {**TOKEN, "type": "float"}


def scheme(weights: dict[str, Any], inputs: dict[str, Any] | None = None, targets: Any = ("Linear",)) -> Any:
    given = None if inputs is None else QuantizationArgs(**inputs)
    return QuantizationScheme(targets=list(targets), weights=QuantizationArgs(**weights), input_activations=given)


def writer(compressor: Any, scheme: Any) -> Writer:
    """Weights that the package quantizes and packs; what they stand for is what it makes of that again."""

    def write(n: int, k: int, rng: np.random.Generator) -> tuple[dict[str, torch.Tensor], Array]:
        args = scheme.weights
        weight = torch.from_numpy(rng.normal(0.1, 1, (n, k)).astype(np.float32)) / 8
        groups = {"group": k // (args.group_size or k), "channel": 1, "tensor": 1}[args.strategy]
        runs = weight.view(1, 1, -1) if args.strategy == "tensor" else weight.view(n, groups, -1)
        scale, zero_point = calculate_qparams(runs.amin(-1), runs.amax(-1), args)
        shape = (1,) if args.strategy == "tensor" else (n, groups)
        # In fp16, as models have them; what is unpacked is then fp16 too, so it is unpacked from fp32 ones here.
        stored = {"weight": weight, "weight_scale": scale.half().float().view(shape)}
        stored["weight_zero_point"] = zero_point.view(shape)
        stored = compressor.compress(stored, scheme)
        dense = compressor.decompress(stored, scheme)["weight"]
        stored["weight_scale"] = stored["weight_scale"].half()
        return {name: value.contiguous() for name, value in stored.items()}, dense.float().numpy()

    return write


def settings(form: str, *schemes: Any, ignore: Any = ("lm_head",)) -> dict[str, Any]:
    groups = {f"group_{i}": each for i, each in enumerate(schemes)}
    config = QuantizationConfig(
        config_groups=groups, format=form, ignore=list(ignore), quantization_status="compressed"
    )
    found: dict[str, Any] = json.loads(json.dumps(config.to_dict(), default=str))
    return found


def grouped(bits: int, symmetric: bool = True) -> dict[str, Any]:
    return {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": 32}


def channel(bits: int, symmetric: bool = True) -> dict[str, Any]:
    return {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "channel"}


FP8 = {"num_bits": 8, "type": "float", "symmetric": True}
KINDS: dict[str, tuple[Any, str, Any, Any]] = {
    "w4a16": (PACKED, "pack-quantized", scheme(grouped(4)), Int4Tensor),
    "w4a16-zeros": (PACKED, "pack-quantized", scheme(grouped(4, False)), Int4Tensor),
    "w4a16-channel": (PACKED, "pack-quantized", scheme(channel(4)), Int4Tensor),
    "w4a16-channel-zeros": (PACKED, "pack-quantized", scheme(channel(4, False)), Int4Tensor),
    "w3a16": (PACKED, "pack-quantized", scheme(grouped(3, False)), IntxTensor),
    "w6a16": (PACKED, "pack-quantized", scheme(grouped(6)), IntxTensor),
    "w8a16-channel": (PACKED, "pack-quantized", scheme(channel(8)), Int8Tensor),
    "w8a8": (INT, "int-quantized", scheme(channel(8), TOKEN), Int8Tensor),
    "w8a8-tensor": (INT, "int-quantized", scheme({**channel(8), "strategy": "tensor"}, TOKEN), Int8Tensor),
    "w4a8": (INT, "int-quantized", scheme(grouped(4), TOKEN), Int8Int4Tensor),
    "fp8-channel": (FLOAT, "float-quantized", scheme({**FP8, "strategy": "channel"}, FP8_TOKEN), Float8Tensor),
    "fp8-tensor": (FLOAT, "float-quantized", scheme({**FP8, "strategy": "tensor"}, FP8_TOKEN), Float8Tensor),
    "fp8-weight": (FLOAT, "naive-quantized", scheme({**FP8, "strategy": "channel"}), Float8Tensor),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_converted(kind: Any, tmp_path: Path) -> None:
    compressor, form, how, tensor_type = kind
    expected = write_checkpoint(tmp_path / "in", writer(compressor, how), settings(form, how))
    report = convert_checkpoint(tmp_path / "in", tmp_path / "out")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {weight.fqns[0] for weight in report.quantized} == expected.keys()
    for name, values in expected.items():
        assert type(weights[name]) is tensor_type
        assert np.array_equal(weights[name].to(torch.float32).dequantize().numpy(), values), name
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.no_grad():
        logits = model(IDS).logits
    exact = reference(tmp_path / "in", expected, IDS)
    if how.input_activations is None:
        torch.testing.assert_close(logits, exact, rtol=1e-4, atol=1e-4)
    else:  # quantized activations: their rounding is of the order of 1% of what they are
        assert (logits - exact).norm() < 0.1 * exact.norm()


def test_config_groups(tmp_path: Path) -> None:
    """Modules by name, by pattern and by class, each in its own format."""
    down = "model.layers.1.mlp.down_proj"
    schemes = (
        scheme(channel(8), TOKEN, [down]),
        scheme(grouped(4, False), None, ["re:.*self_attn.*"]),
        scheme({**FP8, "strategy": "channel"}, FP8_TOKEN),
    )
    writers = {
        down: writer(INT, schemes[0]),
        "self_attn": writer(PACKED, schemes[1]),
        "": writer(FLOAT, schemes[2]),
    }
    found = settings("mixed-precision", *schemes, ignore=["re:.*lm_head"])
    for i, form in enumerate(("int-quantized", "pack-quantized", "float-quantized")):
        found["config_groups"][f"group_{i}"]["format"] = form
    expected = write_checkpoint(tmp_path / "in", writers, found)
    convert_checkpoint(tmp_path / "in", tmp_path / "out")
    formats = {name: w.format for name, w in stored_weights(weight_files(tmp_path / "out")).items()}
    assert formats[f"{down}.weight"] == "int8"
    assert formats["model.layers.0.mlp.down_proj.weight"] == "fp8"
    assert formats["model.layers.0.self_attn.q_proj.weight"] == "int4 g32"
    weights = load_file(tmp_path / "out" / "model.safetensors")
    for name, values in expected.items():
        assert np.array_equal(weights[name].to(torch.float32).dequantize().numpy(), values), name


def test_order_of_columns(tmp_path: Path) -> None:
    """`weight_g_idx`, which releases before September 2026 wrote; the package no longer reads it: in numpy."""
    how = scheme(grouped(4))

    def write(n: int, k: int, rng: np.random.Generator) -> tuple[dict[str, torch.Tensor], Array]:
        stored, dense = writer(PACKED, how)(n, k, rng)
        g_idx = rng.permutation(np.arange(k) // 32)
        scale = stored["weight_scale"].float().numpy()
        # The same codes, of which other columns share a scale.
        codes = np.rint(dense / np.repeat(scale, 32, 1))
        stored["weight_g_idx"] = torch.from_numpy(g_idx.astype(np.int32))
        return stored, (codes * scale[:, g_idx]).astype(np.float32)

    expected = write_checkpoint(tmp_path / "in", write, settings("pack-quantized", how))
    convert_checkpoint(tmp_path / "in", tmp_path / "out")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    for name, values in expected.items():
        assert type(weights[name]).__name__ == "OrderedInt4Tensor"
        assert np.array_equal(weights[name].to(torch.float32).dequantize().numpy(), values), name


def test_loaded_as_they_are(tmp_path: Path) -> None:
    how = scheme(grouped(4, False))
    expected = write_checkpoint(tmp_path / "in", writer(PACKED, how), settings("pack-quantized", how))
    script = (
        "import sys, torch, aoq.integrations.checkpoints\n"
        "from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)\n"
        "logits = model(torch.arange(1, 25).reshape(2, 12)).logits\n"
        "torch.save(logits.detach(), sys.argv[2])\n"
        "print(sum(type(p).__name__ == 'Int4Tensor' for p in model.parameters()))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "in"), str(tmp_path / "logits")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(expected)
    logits = torch.load(tmp_path / "logits")
    torch.testing.assert_close(logits, reference(tmp_path / "in", expected, IDS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"transform_config": {"config_groups": {"R1": {}}}}, r"config.json: transform_config: .*R1"),
        ({"format": "marlin-24"}, r"weight_packed: format: expected one of .*'marlin-24'"),
        ({"config_groups": {}}, r"config.json: config_groups: expected groups by name"),
        ({"ignore": ["re:.*q_proj"]}, r"q_proj.weight_packed: is quantized, but config.json says that it is not"),
    ],
)
def test_settings_that_cannot_be_read(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    how = scheme(grouped(4, False))
    found = settings("pack-quantized", how)
    write_checkpoint(tmp_path / "in", writer(PACKED, how), found)
    set_config(tmp_path / "in", quantization_config=found | changes)
    with pytest.raises(ValueError, match=text):
        convert_checkpoint(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", ["weight_zero_point", "weight_scale", "weight_shape", "weight_packed"])
def test_missing_tensors(missing: str, tmp_path: Path) -> None:
    how = scheme(grouped(4, False))
    write_checkpoint(tmp_path / "in", writer(PACKED, how), settings("pack-quantized", how))
    change(tmp_path / "in", **{f"mlp_up_proj_{missing}": None})
    named = "weight" if missing == "weight_packed" else missing
    with pytest.raises(ValueError, match=rf"model.safetensors: .*its .*up_proj.{named} is missing"):
        convert_checkpoint(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize("second_level", [True, False], ids=["nvfp4", "mxfp4"])
def test_fp4_is_what_the_package_unpacks(tmp_path: Path, second_level: bool) -> None:
    from compressed_tensors.compressors.mxfp4 import MXFP4PackedCompressor
    from compressed_tensors.compressors.nvfp4 import NVFP4PackedCompressor

    group, strategy = (16, "tensor_group") if second_level else (32, "group")
    args = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": strategy, "group_size": group}
    if not second_level:
        args["scale_dtype"] = torch.uint8
    how = scheme(args)
    compressor: Any = NVFP4PackedCompressor if second_level else MXFP4PackedCompressor
    form = "nvfp4-pack-quantized" if second_level else "mxfp4-pack-quantized"
    write_checkpoint(tmp_path / "in", fp4(group, second_level), settings(form, how))
    stored = load_plain(tmp_path / "in" / "model.safetensors")
    convert_checkpoint(tmp_path / "in", tmp_path / "out")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    found = [name for name, w in weights.items() if isinstance(w, FloatxTensor)]
    assert len(found) == 14
    for name in found:
        module = name.removesuffix("weight")
        parts = {key.removeprefix(module): part for key, part in stored.items() if key.startswith(module)}
        theirs = compressor.decompress(parts, how)["weight"]
        # It unpacks to bf16, in which what these scales make is exact.
        assert torch.equal(weights[name].float().dequantize(), theirs.float())
