"""Tiny checkpoints of other producers: their bytes, made in numpy from the description of each layout.

Nothing here is aoq's: what a weight stands for is computed from the codes that went into the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

Array = np.ndarray[Any, Any]
# (rows, columns, random numbers) -> stored tensors by the last part of their names, and the weight in fp32
Writer = Callable[[int, int, np.random.Generator], tuple[dict[str, Tensor], Array]]

SHAPE = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def bit_stream(codes: Array, bits: int) -> Array:
    """Codes [r, c] of one row one after the other, the lowest bit first, in whole 32-bit words: int32 [r, words]."""
    rows, count = codes.shape
    each = (codes[:, :, None] >> np.arange(bits)) & 1
    flat = each.reshape(rows, count * bits)
    flat = np.pad(flat, ((0, 0), (0, -flat.shape[1] % 32))).reshape(rows, -1, 32)
    words = (flat.astype(np.uint64) << np.arange(32, dtype=np.uint64)).sum(-1).astype(np.uint32)
    return words.view(np.int32)


def tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def random_parts(
    n: int, k: int, group: int, bits: int, rng: np.random.Generator, symmetric: bool
) -> tuple[Array, Array, Array]:
    """Codes [n, k], zero points and scales [n, G], as whole numbers and float16."""
    groups = -(-k // group)
    codes = rng.integers(0, 1 << bits, (n, k))
    zeros = np.full((n, groups), 1 << (bits - 1)) if symmetric else rng.integers(0, 1 << bits, (n, groups))
    scales = (rng.uniform(0.5, 1.5, (n, groups)) * 0.3 / (1 << bits)).astype(np.float16)
    return codes, zeros, scales


def values(codes: Array, zeros: Array, scales: Array, of_column: Array) -> Array:
    """(code - zero point) * scale in fp32, of columns in the groups `of_column`."""
    centered = codes.astype(np.float32) - zeros[:, of_column].astype(np.float32)
    return centered * scales[:, of_column].astype(np.float32)


def gptq(
    bits: int = 4,
    group: int = 32,
    symmetric: bool = False,
    offset: int = 1,
    act_order: bool = False,
    g_idx: bool = True,
) -> Writer:
    def write(n: int, k: int, rng: np.random.Generator) -> tuple[dict[str, Tensor], Array]:
        size = k if group == -1 else group
        codes, zeros, scales = random_parts(n, k, size, bits, rng, symmetric)
        of_column = np.arange(k) // size
        if act_order:
            of_column = rng.permutation(of_column)
        stored = {
            "qweight": tensor(bit_stream(codes, bits).T),
            "qzeros": tensor(bit_stream(((zeros - offset) % (1 << bits)).T, bits)),
            "scales": tensor(scales.T),
        }
        if g_idx:
            stored["g_idx"] = tensor(of_column.astype(np.int32))
        return stored, values(codes, zeros, scales, of_column)

    return write


def e4m3(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Tensor, Array]:
    """Finite codes, and what they stand for."""
    codes = rng.integers(0, 256, shape).astype(np.uint8)
    codes[codes & 0x7F == 0x7F] = 0
    exponent, mantissa = codes >> 3 & 15, (codes & 7).astype(np.float32)
    magnitude = np.where(exponent > 0, (8 + mantissa) * 2.0 ** (exponent.astype(np.float32) - 10), mantissa * 2.0**-9)
    return tensor(codes).view(torch.float8_e4m3fn), np.where(codes >> 7, -magnitude, magnitude).astype(np.float32)


def fp8_blocks(rows: int = 32, columns: int = 48, ue8m0: bool = False, scale_name: str = "weight_scale_inv") -> Writer:
    def write(n: int, k: int, rng: np.random.Generator) -> tuple[dict[str, Tensor], Array]:
        codes, exact = e4m3(rng, (n, k))
        scale = rng.uniform(0.5, 1.5, (-(-n // rows), -(-k // columns))).astype(np.float32) * np.float32(1e-3)
        if ue8m0:
            scale = 2.0 ** np.round(np.log2(scale)).astype(np.float32)
        spread = scale.repeat(rows, 0)[:n].repeat(columns, 1)[:, :k]
        return {"weight": codes, scale_name: tensor(scale)}, exact * spread

    return write


def fp4(group: int, second_level: bool) -> Writer:
    table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)

    def write(n: int, k: int, rng: np.random.Generator) -> tuple[dict[str, Tensor], Array]:
        codes = rng.integers(0, 16, (n, k)).astype(np.uint8)
        exact = np.where(codes >> 3, -1, 1).astype(np.float32) * table[codes & 7]
        stored = {"weight_packed": tensor(codes[:, 0::2] | codes[:, 1::2] << 4)}
        if second_level:
            scale, scales = e4m3(rng, (n, k // group))
            stored |= {"weight_scale": scale, "weight_global_scale": torch.tensor([4096.0])}
            scales = scales / np.float32(4096)
        else:
            exponents = rng.integers(110, 125, (n, k // group)).astype(np.uint8)
            stored["weight_scale"], scales = tensor(exponents), 2.0 ** (exponents.astype(np.float32) - 127)
        return stored, exact * scales.astype(np.float32).repeat(group, 1)

    return write


def awq(group: int = 32) -> Writer:
    def interleaved(codes: Array) -> Array:
        """Of eight neighbours in a row, those that lie in each nibble of a word, from the lowest on."""
        rows, count = codes.shape
        return codes.reshape(rows, count // 8, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]].reshape(rows, count)

    def write(n: int, k: int, rng: np.random.Generator) -> tuple[dict[str, Tensor], Array]:
        codes, zeros, scales = random_parts(n, k, group, 4, rng, False)
        stored = {
            "qweight": tensor(bit_stream(interleaved(codes.T), 4)),
            "qzeros": tensor(bit_stream(interleaved(zeros.T), 4)),
            "scales": tensor(scales.T),
        }
        return stored, values(codes, zeros, scales, np.arange(k) // group)

    return write


def hqq(group: int = 32) -> Writer:
    def write(n: int, k: int, rng: np.random.Generator) -> tuple[dict[str, Tensor], Array]:
        codes, _, scales = random_parts(n, k, group, 4, rng, True)
        zeros = rng.uniform(0, 15, scales.shape).astype(np.float16)
        rows = codes.reshape(-1, group).astype(np.uint8)
        high, low = rows[: len(rows) // 2], rows[len(rows) // 2 :]
        stored = {
            "W_q": tensor(high << 4 | low),
            "scale": tensor(scales.reshape(-1, 1)),
            "zero": tensor(zeros.reshape(-1, 1)),
            "shape": torch.tensor([n, k]),
            "nbits": torch.tensor(4),
        }
        return stored, values(codes, zeros, scales, np.arange(k) // group)

    return write


def write_checkpoint(
    directory: Path,
    writer: Writer | Mapping[str, Writer],
    settings: Mapping[str, Any] | None,
    skip: tuple[str, ...] = ("lm_head",),
) -> dict[str, Array]:
    """A Llama whose linears are as `writer` writes them: one for all, or by parts of their names.

    Returns the weights in fp32 by name.
    """
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE), dtype=torch.float16)
    model.save_pretrained(directory)
    rng = np.random.default_rng(0)
    stored = load_file(directory / "model.safetensors")
    expected: dict[str, Array] = {}
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or name in skip:
            continue
        write = next(w for part, w in writer.items() if part in name) if isinstance(writer, Mapping) else writer
        parts, expected[f"{name}.weight"] = write(*module.weight.shape, rng)
        del stored[f"{name}.weight"]
        stored |= {f"{name}.{part}": value for part, value in parts.items()}
    save_file(stored, directory / "model.safetensors", {"format": "pt"})
    if settings is not None:
        set_config(directory, quantization_config=dict(settings))
    return expected


def set_config(directory: Path, **changes: Any) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changes))


def change(directory: Path, **changes: Tensor | None) -> None:
    """Replaces stored tensors, by the names' ends with _ for dots; None takes one away."""
    stored = load_file(directory / "model.safetensors")
    for end, value in changes.items():
        name = next(name for name in stored if name.replace(".", "_").endswith(end))
        if value is None:
            del stored[name]
        else:
            stored[name] = value
    save_file(stored, directory / "model.safetensors", {"format": "pt"})


def reference(directory: Path, expected: Mapping[str, Array], ids: Tensor) -> Tensor:
    """The logits of the checkpoint's model in fp32 with `expected` in place of what is quantized."""
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE), dtype=torch.float32)
    stored = {name: value.float() for name, value in load_file(directory / "model.safetensors").items()}
    dense = {name: torch.from_numpy(value) for name, value in expected.items()}
    missing, _ = model.load_state_dict({**stored, **dense}, strict=False)
    assert not missing
    with torch.no_grad():
        logits: Tensor = model(ids).logits
    return logits
