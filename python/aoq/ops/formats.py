"""The formats of weights that the library has, and what the codes that its kernels read stand for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aoq import _C
from aoq.ops import bits, int8_pack
from aoq.ops.fp8_quantize import fp8_dequantize
from aoq.ops.int4_quantize import intx_dequantize
from aoq.ops.int4_unpack import int4_unpack, int4_unpack_reference
from aoq.ops.int8_quantize import int8_dequantize
from aoq.ops.int8_unpack import int8_unpack, int8_unpack_reference
from aoq.ops.intx_pack import intx_unpack, intx_unpack_reference
from aoq.ops.packed import untile_scale


@dataclass(frozen=True)
class Format:
    """What the library's csrc/formats/<name>.h says of a format.

    bits: of a code. grouped: whether k comes in groups with a scale each. fp8: whether codes are floats of 8 bits.
    ops: what multiplies `x_as` "given" and, where there is one, "int8"; its kernels have its name.
    """

    name: str
    bits: int
    grouped: bool
    fp8: bool
    ops: dict[str, str]

    def packed_shape(self, n: int, k: int, device: torch.device) -> tuple[int, ...]:
        """Of the codes of a weight [n, k] as kernels on `device` read them."""
        if self.bits == 8:
            return int8_pack.packed_shape(n, k, device)
        return bits.packed_shape(n, k, self.bits, device)

    def packed_dtype(self, device: torch.device) -> torch.dtype:
        """Of the same."""
        return int8_pack.packed_dtype(device) if self.bits == 8 else torch.uint8

    def weight(
        self,
        packed: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        n: int,
        group_size: int | None,
        k: int,
        dtype: torch.dtype,
        reference: bool = False,
    ) -> Tensor:
        """The weight [n, k] that packed parts stand for, in `dtype`. With `reference` PyTorch unpacks, not a kernel."""
        scale = untile_scale(scale, n)
        if self.bits == 8:
            codes = (int8_unpack_reference if reference else int8_unpack)(packed, n, k)
            if not self.fp8:
                return int8_dequantize(codes, scale, None, dtype)
            return fp8_dequantize(codes.view(fp8_dtype(self.name)), scale, dtype)
        zero_point = None if zero_point is None else untile_scale(zero_point, n)
        if self.bits == 4:
            codes = (int4_unpack_reference if reference else int4_unpack)(packed, n, k)
        else:
            codes = (intx_unpack_reference if reference else intx_unpack)(packed, n, k, self.bits)
        return intx_dequantize(codes, scale, zero_point, self.bits, group_size or k, k, dtype)


def _format(name: str, text: str) -> Format:
    bits, grouped, fp8, given, int8 = text.split()
    ops = {"given": given} | ({} if int8 == "none" else {"int8": int8})
    return Format(name, int(bits), grouped == "1", fp8 == "1", ops)


FORMATS = {name: _format(name, text) for name, text in _C.formats().items()}


def fp8_dtype(name: str) -> torch.dtype:
    """The dtype of an fp8 format's codes."""
    return torch.float8_e5m2 if name == "fp8_e5m2" else torch.float8_e4m3fn


def fp8_format(dtype: torch.dtype | None) -> Format:
    """The format of codes of this dtype; None is e4m3fn."""
    return FORMATS["fp8_e5m2" if dtype is torch.float8_e5m2 else "fp8_e4m3"]
