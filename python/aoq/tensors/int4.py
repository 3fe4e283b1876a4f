"""int4 weights, groupwise along k: `Int4WeightOnlyConfig` and the `Int4Tensor` that it makes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from aoq.config import AOBaseConfig, Json, MappingType
from aoq.ops.dtypes import FLOAT_DTYPES, dtype_name
from aoq.ops.int4_mm import int4_mm
from aoq.ops.int4_pack import int4_pack, packed_shape
from aoq.ops.int4_quantize import int4_dequantize, int4_quantize
from aoq.ops.int4_unpack import int4_rows, int4_unpack
from aoq.ops.packed import TILE_N, tile_scale, untile_scale
from aoq.tensors.base import check_scale_dtype, check_weight
from aoq.tensors.tiled import Part, TiledTensor, map_parts


@dataclass
class Int4WeightOnlyConfig(AOBaseConfig):
    """int4 weights with a scale and a zero point per group; activations are used as given.

    Args:
        group_size: neighbours along k that share a scale: a multiple of 8, or anything >= k for one group a
            row. It need not divide k: the last group may be shorter.
        use_hqq: optimize the zero points for the weights' heavy-tailed error (slower, better).
        mapping_type: symmetric around zero (no zero points) or over [min, max].
        scale_dtype: of scales and zero points; by default the weight's.
    """

    group_size: int = 128
    use_hqq: bool = False
    mapping_type: MappingType = MappingType.ASYMMETRIC
    scale_dtype: torch.dtype | None = None

    VERSION: ClassVar[int] = 2

    def __post_init__(self) -> None:
        self.check_types(group_size=int, use_hqq=bool, mapping_type=MappingType)
        check_group_size(self, self.group_size)
        check_scale_dtype(self, self.scale_dtype)
        if self.use_hqq and self.mapping_type is MappingType.SYMMETRIC:
            raise ValueError("Int4WeightOnlyConfig.use_hqq: HQQ optimizes zero points, which symmetric has none of")

    @classmethod
    def upgrade(cls, data: dict[str, Json]) -> dict[str, Json]:
        """torchao names the algorithm where this class has `use_hqq`."""
        algorithm = data.pop("int4_choose_qparams_algorithm", None)
        if isinstance(algorithm, dict):  # an enum member, by name
            algorithm = algorithm.get("_data")
        if isinstance(algorithm, str) and algorithm.lower() == "hqq":
            data["use_hqq"] = True
        return data

    def quantize(self, weight: Tensor) -> Int4Tensor:
        """The weight [..., n, k] as an `Int4Tensor` in its device's layout.

        Raises:
            ValueError: fewer than 2 dimensions, NaN or Inf, a group size that the kernels do not have.
            TypeError: the weight is not bf16, fp16 or fp32.
        """
        mapping = "hqq" if self.use_hqq else self.mapping_type.name.lower()
        parts = quantized_parts(weight, self.group_size, mapping, self.scale_dtype)
        return Int4Tensor(*parts, self.group_size, "plain", shape=weight.shape, dtype=weight.dtype).pack()


def check_group_size(config: AOBaseConfig, group_size: int) -> None:
    if group_size < 8:
        raise ValueError(f"{type(config).__name__}.group_size: expected 8 or more, got {group_size}")


def quantized_parts(
    weight: Tensor, group_size: int, mapping: str, scale_dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The plain parts of an `Int4Tensor` from a weight [..., n, k]; raises as `Int4WeightOnlyConfig.quantize`."""
    check_weight(weight)
    rows = weight.detach().reshape(-1, weight.shape[-1])
    parts = int4_quantize(rows, group_size, mapping, scale_dtype)
    qdata, scale, zero_point = (part.unflatten(0, weight.shape[:-1]) for part in parts)
    narrow = scale.dtype is torch.float16 and weight.dtype is not torch.float16
    # The CPU's kernel has raised for weights that are not finite; CUDA's cannot, and makes their scales NaN.
    if (narrow or weight.is_cuda) and not weight.is_meta and not scale.isfinite().all():
        if scale.isnan().any():
            raise ValueError("w: expected finite values, got NaN or infinity")
        raise ValueError(f"w: expected values whose scale {dtype_name(scale.dtype)} holds; use another scale_dtype")
    return qdata, scale, None if mapping == "symmetric" else zero_point


class Int4Tensor(TiledTensor):
    """A weight [..., n, k] of int4 codes: `w = (code - zero_point) * scale`; no zero point means 8.

    packing "plain" (checkpoints, slices, any device):
        qdata: uint8 [..., n, ceil(k / 2)], low nibble = even k.
        scale, zero_point: [..., n, G], G = ceil(k / group_size).
    packing `layout(device)` (what the device's kernels read):
        qdata: uint8 [..., *packed_shape(n, k, device)] from `int4_pack`.
        scale, zero_point: [..., ceil(n / 16), G, 16] from `tile_scale`.

    A slice along k that starts inside a group and goes on after it repeats scales to make smaller groups. Nothing
    can be copied into such a slice, nor into one that ends inside a group.

    Raises:
        ValueError, TypeError: a part has a wrong shape, dtype or device; the text names it.
    """

    tensors: ClassVar[tuple[str, ...]] = ("qdata", "scale", "zero_point")
    attrs: ClassVar[tuple[str, ...]] = ("group_size", "packing")
    mm_op = "int4_mm"

    scale: Tensor
    zero_point: Tensor | None
    group_size: int

    def expected_parts(self) -> dict[str, Part]:
        *lead, k = self.weight_shape
        if not isinstance(self.group_size, int) or self.group_size < 1:
            raise ValueError(f"{type(self).__name__}: group_size: expected 1 or more, got {self.group_size!r}")
        groups = -(-k // self.group_size)
        if self.packed:
            packed = packed_shape(lead[-1], k, self.device)
            qdata, scale = (*lead[:-1], *packed), (*lead[:-1], packed[0], groups, TILE_N)
        else:
            qdata, scale = (*lead, (k + 1) // 2), (*lead, groups)
        return {
            "qdata": (qdata, (torch.uint8,)),
            "scale": (scale, FLOAT_DTYPES),
            "zero_point": (None if self.zero_point is None else scale, FLOAT_DTYPES),
        }

    def tiled_parts(self, qdata: Tensor, *scales: Tensor | None) -> list[Tensor | None]:
        return [int4_pack(qdata.contiguous(), self.weight_shape[-1]), *map_parts(tile_scale, scales)]

    def plain_parts(self, qdata: Tensor, *scales: Tensor | None) -> list[Tensor | None]:
        n, k = self.weight_shape[-2:]
        return [int4_unpack(qdata, n, k), *map_parts(lambda tiled: untile_scale(tiled, n), scales)]

    def tiled_rows(self, ids: Tensor) -> Tensor:
        return int4_rows(self.qdata, ids, self.weight_shape[-1])

    def floats(self, qdata: Tensor, *scales: Any) -> Tensor:
        scale, zero_point = scales[:2]
        return int4_dequantize(qdata, scale, zero_point, self.group_size, self.weight_shape[-1], self.dtype)

    def linear_tiled(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return int4_mm(x, self.qdata, self.scale, self.zero_point, bias, self.weight_shape[0], self.group_size)

    def matching(self, other: Self) -> Self:
        w = self
        if w.group_size != other.group_size and min(w.group_size, other.group_size) >= w.weight_shape[-1]:
            w = w.rebuild(w.parts(), group_size=other.group_size)  # one group either way
        elif w.group_size != other.group_size and w.group_size % other.group_size == 0:
            w = w.unpack().regroup(other.group_size)
        return super(Int4Tensor, w).matching(other)

    def regroup(self, group_size: int) -> Self:
        """The same values in smaller groups, which repeat the scales; `group_size` divides the present one."""
        if self.packed or self.group_size % group_size or group_size % 8:
            raise ValueError(
                f"regroup: group_size: expected a multiple of 8 that divides {self.group_size}, and a plain tensor, "
                f"got {group_size} for {self}"
            )
        groups, repeats = -(-self.weight_shape[-1] // group_size), self.group_size // group_size
        scales = map_parts(lambda part: part.repeat_interleave(repeats, -1)[..., :groups], self.parts()[1:])
        return self.rebuild((self.qdata, *scales), group_size=group_size)

    def narrow_k(self, start: int, length: int) -> Self:
        *lead, size = self.weight_shape
        end = start + length
        if start % 2 or (end % 2 and end != size):
            raise ValueError(f"slice: expected even bounds along k (two codes a byte), got {start}:{end} of {self}")
        w, last = self, max(end - 1, start)
        if start % w.group_size and start // w.group_size != last // w.group_size:
            if start % 8:
                raise ValueError(f"slice: expected a start along k that is a multiple of 8, got {start} of {self}")
            w = self.regroup(math.gcd(start, self.group_size))
        group = start // w.group_size
        groups = last // w.group_size + 1 - group
        scales = map_parts(lambda part: part.narrow(-1, group, groups), w.parts()[1:])
        view = w.rebuild((w.qdata.narrow(-1, start // 2, (length + 1) // 2), *scales), shape=(*lead, length))
        view.writable = not start % self.group_size and (end == size or not end % self.group_size)
        return view
