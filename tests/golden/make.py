"""Writes the golden checkpoints of the installed release of aoq to the directory v<major>_<minor> beside this file.

    python tests/golden/make.py

Run it once for a release, with the release's own code, before anything changes; `tests/test_golden.py` loads what is
there with every later one. A directory holds

    <model>/            a tiny Llama in safetensors, as `save_pretrained` writes it, and `expected.safetensors`:
                        input_ids, the logits that the release computed and, in the metadata, `digest` of what each
                        quantized weight dequantizes to
    state_<model>.pt    `torch.save` of a model's state dict
    tensors.pt          `torch.save` of tensors in every format: packed, plain, as a parameter, experts, transposed
    tensors.safetensors x, what F.linear made of it with each packed tensor, and digests of parts and values
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

import aoq
from aoq import (
    AOBaseConfig,
    AoqConfig,
    Float8DynamicActivationFloat8WeightConfig,
    Float8WeightOnlyConfig,
    FqnToConfig,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt4WeightConfig,
    Int8DynamicActivationInt8WeightConfig,
    MappingType,
    PerRow,
    PerTensor,
    QuantizedTensor,
)
from aoq.tensors.formats import ways

HERE = Path(__file__).parent
SYMMETRIC, ASYMMETRIC = MappingType

# Every format there is, and variants of some.
FORMATS: dict[str, AOBaseConfig] = {
    **{way.command: way.config for way in ways()},
    **{way.command: way.config.with_options(group_size=32) for way in ways() if "group_size" in way.config.OPTIONS},
    "int4-symmetric": Int4WeightOnlyConfig(16, mapping_type=SYMMETRIC, scale_dtype=torch.float32),
    "int4-hqq": Int4WeightOnlyConfig(32, use_hqq=True),
    "int8-int4-asymmetric": Int8DynamicActivationInt4WeightConfig(16, ASYMMETRIC, SYMMETRIC),
    "int8-asymmetric": Int8DynamicActivationInt8WeightConfig(ASYMMETRIC, scale_dtype=torch.float32),
    "fp8-tensor": Float8DynamicActivationFloat8WeightConfig(activation_value_ub=3.0),
    "fp8-e5m2": Float8DynamicActivationFloat8WeightConfig(
        torch.float8_e4m3fn, torch.float8_e5m2, [PerTensor(), PerRow()]
    ),
    "fp8-weight-e5m2": Float8WeightOnlyConfig(torch.float8_e5m2, PerTensor()),
}

MIXED = FqnToConfig(
    {
        "model.layers.0.mlp.down_proj": FORMATS["int8-asymmetric"],
        "re:.*mlp.*": FORMATS["int4-symmetric"],
        "re:.*self_attn.k_proj": FORMATS["fp8"],
        "model.layers.0.self_attn.o_proj": None,
        "model.embed_tokens": FORMATS["int8-weight"],
        "lm_head": FORMATS["int8-int4"],
        "_default": FORMATS["int4"],
    }
)

# name -> how to quantize, whether embedding and head are tied, the dtype
MODELS: dict[str, tuple[AoqConfig, bool, torch.dtype]] = {
    **{name: (AoqConfig(config), False, torch.bfloat16) for name, config in FORMATS.items()},
    "mixed": (AoqConfig(MIXED), False, torch.bfloat16),
    "tied": (AoqConfig(FORMATS["int4"]), True, torch.float16),
    "tied-embedding": (AoqConfig(FORMATS["int8-int4"], include_embedding=True), True, torch.bfloat16),
    "untied-embedding": (AoqConfig(FORMATS["int8-weight"], include_embedding=True), False, torch.float32),
}

# Neither n nor k is a multiple of the kernels' tiles everywhere, nor k of the groups.
SHAPE = {
    "vocab_size": 64,
    "hidden_size": 40,
    "intermediate_size": 56,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def digest(tensor: Tensor) -> str:
    """Of a plain tensor's dtype, shape and bits."""
    contiguous = tensor.detach().contiguous()
    data = contiguous.view(torch.uint8).numpy().tobytes() if contiguous.numel() else b""
    header = f"{tensor.dtype} {tuple(tensor.shape)} "
    return hashlib.sha256(header.encode() + data).hexdigest()[:32]


def make_model(directory: Path, config: AoqConfig, tied: bool, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    whole = AutoModelForCausalLM.from_config(
        LlamaConfig(**SHAPE, tie_word_embeddings=tied, initializer_range=0.2), dtype=dtype
    )
    source = directory.with_name(f"{directory.name}.source")
    whole.save_pretrained(source)
    model = AutoModelForCausalLM.from_pretrained(source, quantization_config=config)
    shutil.rmtree(source)
    model.save_pretrained(directory)
    (directory / "generation_config.json").unlink(missing_ok=True)
    input_ids = torch.tensor([[1, 5, 60, 3, 17], [1, 33, 2, 63, 0]])
    with torch.no_grad():
        logits = model(input_ids).logits
    values = {name: digest(w.dequantize()) for name, w in model.state_dict().items() if isinstance(w, QuantizedTensor)}
    save_file({"input_ids": input_ids, "logits": logits}, directory / "expected.safetensors", values)
    return model


def make_tensors(directory: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 40)
    tensors: dict[str, QuantizedTensor] = {}
    expected = {"x": x}
    for name, config in FORMATS.items():
        w = config.quantize(torch.randn(24, 40))
        tensors[f"{name}: packed"] = w
        tensors[f"{name}: plain"] = config.quantize(torch.randn(9, 40, dtype=torch.bfloat16)).unpack()
        tensors[f"{name}: parameter"] = nn.Parameter(config.quantize(torch.randn(5, 24)), requires_grad=False)
        tensors[f"{name}: experts"] = config.quantize(torch.randn(2, 6, 24, dtype=torch.float16))
        tensors[f"{name}: transposed"] = config.quantize(torch.randn(5, 24)).t()
        expected[name] = F.linear(x, w)
    torch.save(tensors, directory / "tensors.pt")
    digests = {name: json.dumps(digests_of(w)) for name, w in tensors.items()}
    save_file(expected, directory / "tensors.safetensors", digests)


def digests_of(w: QuantizedTensor) -> dict[str, str]:
    """Of the plain parts that there are, and of the values."""
    plain = w.unpack()
    parts = {name: digest(part) for name, part in zip(w.tensors, plain.parts(), strict=True) if part is not None}
    return {**parts, "values": digest(w.dequantize())}


def main() -> None:
    directory = HERE / "v{}_{}".format(*aoq.__version__.split("."))
    directory.mkdir()
    for name, (config, tied, dtype) in MODELS.items():
        model = make_model(directory / name, config, tied, dtype)
        if name in ("mixed", "tied-embedding"):
            torch.save(model.state_dict(), directory / f"state_{name}.pt")
    make_tensors(directory)


if __name__ == "__main__":
    main()
