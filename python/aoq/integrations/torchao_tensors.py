"""torchao's configs and quantized tensors as aoq's. Importing this changes nothing in torchao."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torchao
from torch import Tensor
from torch.nn.functional import pad
from torchao.prototype.quantization import int4 as prototype
from torchao.prototype.safetensors.safetensors_utils import object_from_dict
from torchao.quantization import (
    Float8DynamicActivationFloat8WeightConfig,
    Float8Tensor,
    Float8WeightOnlyConfig,
    Int4PlainInt32Tensor,
    Int4Tensor,
    Int4TilePackedTo4dTensor,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8DynamicActivationIntxWeightConfig,
    Int8Tensor,
    Int8WeightOnlyConfig,
    IntxUnpackedToInt8Tensor,
    IntxWeightOnlyConfig,
    MappingType,
    PerGroup,
    PerRow,
    PerTensor,
)
from torchao.quantization.quantize_.workflows import Float8PackingFormat

import aoq
from aoq.ops.bits import from_codes
from aoq.tensors.base import QuantizedTensor

VERSION = (0, 18)  # the tensors' layouts are those of this release

if tuple(map(int, torchao.__version__.split(".")[:2])) != VERSION:
    raise ImportError(
        f"aoq knows the configs and tensors of torchao {VERSION[0]}.{VERSION[1]}; this is torchao {torchao.__version__}"
    )


class Unsupported(ValueError):
    """aoq has no format for this tensor of torchao; the text says why."""


# ---- configs


def config_from_torchao(config: Any, k: int, embedding: bool = False) -> aoq.AOBaseConfig | None:
    """The aoq config that means what torchao's `config` does, or None when aoq has no kernel or no rule for it.

    Fields that only choose among torchao's kernels (packing format, inductor settings, reduced range) do not count.

    Args:
        k: columns of the weight.
        embedding: whether the weight is only looked up, so that it does not matter what its config says of activations.
    """
    translate = _CONFIGS.get(type(config))
    found = translate(config, k, embedding) if translate else None
    if found is None or type(found).quantize is aoq.AOBaseConfig.quantize:
        return None
    return found


def _int4_weight_only(config: Any, k: int, embedding: bool) -> aoq.AOBaseConfig | None:
    hqq = config.int4_choose_qparams_algorithm == "hqq"
    return aoq.Int4WeightOnlyConfig(config.group_size, hqq) if _is_group(config.group_size, k) else None


def _int8_weight_only(config: Any, k: int, embedding: bool) -> aoq.AOBaseConfig | None:
    if isinstance(config.granularity, PerGroup) and _is_group(config.granularity.group_size, k):
        return aoq.Int8WeightOnlyConfig(config.granularity.group_size, scale_dtype=torch.float32)
    return aoq.Int8WeightOnlyConfig(scale_dtype=torch.float32) if config.granularity == PerRow() else None


def _int8_int8(config: Any, k: int, embedding: bool) -> aoq.AOBaseConfig | None:
    granularity = config.granularity if isinstance(config.granularity, list) else [config.granularity]
    if any(each not in (None, PerRow()) for each in granularity):
        return None
    return aoq.Int8DynamicActivationInt8WeightConfig(_mapping(config.act_mapping_type), scale_dtype=torch.float32)


def _int8_int4(config: Any, k: int, embedding: bool) -> aoq.AOBaseConfig | None:
    if not _is_group(config.group_size, k):
        return None
    mappings = (aoq.MappingType.ASYMMETRIC, _mapping(config.act_mapping_type))
    return aoq.Int8DynamicActivationInt4WeightConfig(config.group_size, *mappings)


def _intx_weight_only(config: Any, k: int, embedding: bool) -> aoq.AOBaseConfig | None:
    granularity = _intx_granularity(config, config.granularity, config.mapping_type, k)
    if granularity is None:
        return None
    mapping = _mapping(config.mapping_type)
    return aoq.IntxWeightOnlyConfig(config.weight_dtype, granularity, mapping, config.scale_dtype)


def _int8_intx(config: Any, k: int, embedding: bool) -> aoq.AOBaseConfig | None:
    granularity = _intx_granularity(config, config.weight_granularity, config.weight_mapping_type, k)
    if granularity is None:
        return None
    mapping, act_mapping = _mapping(config.weight_mapping_type), _mapping(config.act_mapping_type)
    fields = (config.weight_dtype, granularity, mapping, config.weight_scale_dtype)
    return aoq.Int8DynamicActivationIntxWeightConfig(*fields, act_mapping)


def _float8_weight_only(config: Any, k: int, embedding: bool) -> aoq.AOBaseConfig | None:
    granularity = config.granularity
    if isinstance(granularity, PerGroup) and _is_group(granularity.group_size, k):
        e4m3 = config.weight_dtype == torch.float8_e4m3fn
        return aoq.Float8WeightOnlyConfig(granularity=aoq.PerGroup(granularity.group_size)) if e4m3 else None
    if granularity not in _FLOAT8_GRANULARITIES:
        return None
    return aoq.Float8WeightOnlyConfig(config.weight_dtype, _FLOAT8_GRANULARITIES[granularity])


def _float8_float8(config: Any, k: int, embedding: bool) -> aoq.AOBaseConfig | None:
    plain = config.packing_format == Float8PackingFormat.PLAIN
    if not plain or any(each not in _FLOAT8_GRANULARITIES for each in config.granularity):
        return None
    both = tuple(_FLOAT8_GRANULARITIES[each] for each in config.granularity)
    bounds = (config.activation_value_lb, config.activation_value_ub)
    return aoq.Float8DynamicActivationFloat8WeightConfig(config.activation_dtype, config.weight_dtype, both, *bounds)


def _intx_granularity(config: Any, granularity: Any, mapping: MappingType, k: int) -> Any:
    """That of weights of a few bits as aoq quantizes them, or None: torchao has to."""
    if config.intx_choose_qparams_algorithm != "affine" or mapping is MappingType.SYMMETRIC_NO_CLIPPING_ERR:
        return None
    if not isinstance(granularity, PerGroup):
        return aoq.PerAxis(0)
    return aoq.PerGroup(granularity.group_size) if _is_group(granularity.group_size, k) else None


def _is_group(size: int, k: int) -> bool:
    return size >= 8 and (size % 8 == 0 or size >= k)


def _mapping(mapping: MappingType) -> aoq.MappingType:
    return aoq.MappingType[mapping.name]


_FLOAT8_GRANULARITIES: dict[Any, Any] = {PerRow(): aoq.PerRow(), PerTensor(): aoq.PerTensor()}
_CONFIGS: dict[type, Callable[[Any, int, bool], aoq.AOBaseConfig | None]] = {
    Int4WeightOnlyConfig: _int4_weight_only,
    prototype.PrototypeInt4WeightOnlyConfig: _int4_weight_only,
    Int8WeightOnlyConfig: _int8_weight_only,
    Int8DynamicActivationInt8WeightConfig: _int8_int8,
    prototype.Int8DynamicActivationInt4WeightConfig: _int8_int4,
    IntxWeightOnlyConfig: _intx_weight_only,
    Int8DynamicActivationIntxWeightConfig: _int8_intx,
    Float8WeightOnlyConfig: _float8_weight_only,
    Float8DynamicActivationFloat8WeightConfig: _float8_float8,
}
CONFIGS = tuple(_CONFIGS)


# ---- tensors


def tensor_from_torchao(w: Tensor, embedding: bool = False) -> QuantizedTensor:
    """torchao's quantized tensor `w` [..., n, k] as aoq's, in the plain layout: codes and scales as they are.

    Zero points that torchao adds after scaling become fp32 ones that are subtracted before, so values may differ by
    a rounding of fp32.

    Args:
        embedding: whether the weight is only looked up, never multiplied by.

    Raises:
        Unsupported: aoq has no such format, or its kernels would treat activations otherwise.
    """
    convert = _TENSORS.get(type(w))
    if convert is None:
        raise Unsupported(f"aoq has no format for torchao's {type(w).__name__}")
    if getattr(w, "act_pre_scale", None) is not None:
        raise Unsupported(f"{type(w).__name__}: aoq does not scale activations (act_pre_scale)")
    with torch.no_grad():
        return convert(w, embedding)


def tensor_from_parts(description: Mapping[str, Any], parts: Mapping[str, Tensor]) -> Tensor:
    """The tensor of torchao that safetensors metadata describes. Raises ValueError when they do not fit."""
    w: Tensor = object_from_dict({**description, "_data": {**description["_data"], **parts}})
    return w


def is_torchao(w: Any) -> bool:
    return isinstance(w, torchao.utils.TorchAOBaseTensor)


def _plain_int4(w: Any, embedding: bool) -> QuantizedTensor:
    """qdata int8 [..., n, k / 2], codes -8..7, low nibble = even k; value = code * scale + zero, both [..., G, n]."""
    if w.activation_dtype != torch.bfloat16:
        raise Unsupported(f"Int4Tensor: aoq does not quantize activations to {w.activation_dtype}")
    qdata = w.qdata.view(torch.uint8) ^ 0x88  # + 8 in each nibble
    return _added_zero(w, qdata, w.scale.mT, w.zero_point.mT)


def _tile_packed_int4(w: Any, embedding: bool) -> QuantizedTensor:
    """As CUDA's tensor cores read it, n padded to 8 or 16, k to 1024; value = (code - 8) * scale + zero.

    qdata int32 [..., n / 8, k / 128, 32, 4]: the 8 nibbles of lane l's integer i are row l / 4 and, of columns
    32 i..32 i + 31, those at 2 (l % 4) in each run of 8: the four even ones first, then the odd ones.
    scale_and_zero [..., G, n, 2].
    """
    n, k = w.shape[-2:]
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=w.device)
    nibbles = (w.qdata.unsqueeze(-1) >> shifts & 0xF).to(torch.uint8)
    *lead, tiles_n, tiles_k = nibbles.shape[:-3]
    nibbles = nibbles.view(-1, tiles_n, tiles_k, 8, 4, 4, 2, 4)  # row, lane in row, integer, odd, run
    codes = nibbles.permute(0, 1, 3, 2, 5, 7, 4, 6).reshape(*lead, 8 * tiles_n, 128 * tiles_k)
    scale, zero = w.scale_and_zero.transpose(-3, -2).unbind(-1)
    groups = -(-k // w.block_size[-1])
    return _added_zero(w, _pack_nibbles(codes[..., :n, :k]), scale[..., :n, :groups], zero[..., :n, :groups])


def _xpu_int4(w: Any, embedding: bool) -> QuantizedTensor:
    """qdata int32 [n, k / 8], codes 0..15, the lowest nibble first; scale and int8 zero_point [G, n]."""
    if w.zero_point.dtype != torch.int8:
        raise Unsupported("Int4PlainInt32Tensor: aoq reads the layout of Intel GPUs, whose zero points are int8")
    return _int4(w, w.qdata.view(torch.uint8), w.scale.mT, w.zero_point.mT.to(w.scale.dtype))


def _int8(w: Any, embedding: bool) -> QuantizedTensor:
    """qdata int8 [..., n, k]; scale [..., n, 1], or one for all."""
    activations = w.act_quant_kwargs
    if activations is not None and (w.act_quant_scale is not None or activations.granularity != PerRow()):
        raise Unsupported("Int8Tensor: aoq quantizes activations per token, as they come")
    rows, group, k = w.shape[:-1], w.block_size[-1], w.shape[-1]
    mapping = None if activations is None else activations.mapping_type.name.lower()
    if group < k and w.scale.shape == (*rows, -(-k // group)) and _is_group(group, k):
        return _intx_tensor(w, 8, w.scale, w.zero_point, mapping)
    if w.scale.numel() not in (1, rows.numel()) or (w.zero_point is not None and w.zero_point.any()):
        raise Unsupported("Int8Tensor: aoq's int8 weights have scales per row or group, and no zero points per row")
    return _int8_tensor(w, w.scale.expand(*rows, 1) if w.scale.numel() == 1 else w.scale.reshape(*rows, 1), mapping)


def _intx(w: Any, embedding: bool) -> QuantizedTensor:
    """qdata int8 [n, k] of a narrower range, scale and zero_point (int8 or float) [n, G]."""
    if w.dim() != 2:
        raise Unsupported(f"IntxUnpackedToInt8Tensor: expected 2 dimensions, got shape {tuple(w.shape)}")
    bits = int(str(w.target_dtype).removeprefix("torch.int"))
    group, k = w.block_size[-1], w.shape[-1]
    mapping = None if w.activation_quantization is None else "asymmetric"
    if bits == 8 and group == k and not w.zero_point.any():
        return _int8_tensor(w, w.scale, mapping)
    if not _is_group(group, k):
        raise Unsupported(f"IntxUnpackedToInt8Tensor: aoq has no kernel for int{bits} weights in groups of {group}")
    exact = w.scale.dtype if w.zero_point.dtype == torch.int8 else torch.float32
    if bits == 4:
        zero_point = (w.zero_point.float() + 8).to(exact) if w.zero_point.any() else None
        qdata = _pack_nibbles((w.qdata + 8).view(torch.uint8))
        return _int4(w, qdata, w.scale.to(exact), zero_point, mapping or "")
    return _intx_tensor(w, bits, w.scale.to(exact), w.zero_point, mapping)


def _float8(w: Any, embedding: bool) -> QuantizedTensor:
    """qdata fp8 [..., n, k]; scale [..., n, 1], or one for all."""
    activations, rows = w.act_quant_kwargs, w.shape[:-1]
    act: tuple[Any, ...] = (None, None, None, None)
    if activations is not None:
        if activations.granularity not in _FLOAT8_GRANULARITIES:
            raise Unsupported(f"Float8Tensor: aoq has no kernel for activations {activations.granularity}")
        granularity = "tensor" if activations.granularity == PerTensor() else "row"
        act = (activations.float8_dtype, granularity, activations.hp_value_lb, activations.hp_value_ub)
    if w.scale.numel() != 1 and w.scale.shape != (*rows, 1):
        return _float8_blocks(w)
    scale = w.scale.reshape((1,) * w.dim()).expand(*rows, 1) if w.scale.numel() == 1 else w.scale
    attrs = (w.qdata.dtype, *act, "plain")
    return aoq.Float8Tensor(w.qdata, scale.contiguous(), *attrs, shape=w.shape, dtype=w.dtype)


def _float8_blocks(w: Any) -> QuantizedTensor:
    """qdata e4m3 [n, k]; a scale for each block of rows and columns, which each of its rows then has."""
    block, group = w.block_size[-2:]
    fits = w.dim() == 2 and w.qdata.dtype == torch.float8_e4m3fn and _is_group(group, w.shape[-1])
    if w.act_quant_kwargs is not None or not fits:
        text = f"of {w.qdata.dtype} in blocks of {tuple(w.block_size)}, activations {w.act_quant_kwargs}"
        raise Unsupported(f"Float8Tensor: aoq has no kernel for weights {text}")
    scale = w.scale.repeat_interleave(block, 0)[: len(w.qdata)].contiguous()
    attrs = (group, "plain", "fp8_e4m3_grouped")
    return aoq.FloatxTensor(w.qdata, scale, None, None, *attrs, shape=w.shape, dtype=w.dtype)


_TENSORS: dict[type, Callable[[Any, bool], QuantizedTensor]] = {
    Int4Tensor: _plain_int4,
    Int4TilePackedTo4dTensor: _tile_packed_int4,
    Int4PlainInt32Tensor: _xpu_int4,
    Int8Tensor: _int8,
    IntxUnpackedToInt8Tensor: _intx,
    Float8Tensor: _float8,
}


def _added_zero(w: Any, qdata: Tensor, scale: Tensor, zero: Tensor) -> QuantizedTensor:
    """An int4 tensor whose values are (code - 8) * scale + zero."""
    if not zero.any():
        return _int4(w, qdata, scale, None)
    scale, zero = scale.float(), zero.float()
    # Where codes no longer matter beside zero, neither need the quotient fit: 9 - 8 times zero.
    flat = zero.abs() > scale * 2.0**27
    if flat.any():
        bytes_of = flat.repeat_interleave(w.block_size[-1] // 2, -1)[..., : qdata.shape[-1]]
        qdata, scale = qdata.masked_fill(bytes_of, 0x99), torch.where(flat, zero, scale)
    return _int4(w, qdata, scale, torch.where(flat, 8.0, 8 - zero / scale))


def _int4(w: Any, qdata: Tensor, scale: Tensor, zero_point: Tensor | None, act_mapping: str = "") -> QuantizedTensor:
    parts = [part if part is None else part.contiguous() for part in (qdata, scale, zero_point)]
    attrs = (w.block_size[-1], "plain")
    if not act_mapping:
        return aoq.Int4Tensor(*parts, *attrs, shape=w.shape, dtype=w.dtype)
    return aoq.Int8Int4Tensor(*parts, None, *attrs, act_mapping, shape=w.shape, dtype=w.dtype)


def _int8_tensor(w: Any, scale: Tensor, act_mapping: str | None) -> QuantizedTensor:
    return aoq.Int8Tensor(w.qdata, scale.contiguous(), None, act_mapping, "plain", shape=w.shape, dtype=w.dtype)


def _intx_tensor(
    w: Any, bits: int, scale: Tensor, zero_point: Tensor | None, act_mapping: str | None
) -> QuantizedTensor:
    """qdata int8 [n, k] around 0, scale and zero_point [n, G]."""
    middle = 1 << (bits - 1)
    qdata = from_codes((w.qdata.int() + middle).to(torch.uint8), bits)
    zero_point = None if zero_point is None or not zero_point.any() else (zero_point.float() + middle).to(scale.dtype)
    attrs = (w.block_size[-1], "plain", bits, act_mapping)
    return aoq.IntxTensor(qdata, scale.contiguous(), zero_point, None, *attrs, shape=w.shape, dtype=w.dtype)


def _pack_nibbles(codes: Tensor) -> Tensor:
    codes = pad(codes, (0, codes.shape[-1] % 2))
    return codes[..., 0::2] | codes[..., 1::2] << 4
