"""The formats of weights that the library has, and what the codes that its kernels read stand for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aoq import _C
from aoq.ops import bits, int8_pack
from aoq.ops.int4_pack import int4_pack
from aoq.ops.int4_quantize import intx_dequantize, per_column
from aoq.ops.int4_unpack import int4_rows, int4_unpack, int4_unpack_reference
from aoq.ops.int8_unpack import int8_rows, int8_unpack, int8_unpack_reference
from aoq.ops.intx_pack import intx_pack, intx_unpack, intx_unpack_reference
from aoq.ops.packed import TILE_N, untile_scale


@dataclass(frozen=True)
class Format:
    """What the library's csrc/formats/<name>.h says of a format.

    bits: of a code. grouped: whether k comes in groups with a scale each. fp8: whether codes are floats of 8 bits.
    ops: what multiplies `x_as` "given" and, where there is one, "int8"; its kernels have its name.
    values: what each code of a table stands for; none where codes are integers, or fp8.

    Plain codes, `qdata`, are the bit stream of each row, uint8 [n, ceil(k * bits / 8)]; of 8 bits [n, k] of
    `plain_dtype`.
    """

    name: str
    bits: int
    grouped: bool
    fp8: bool
    ops: dict[str, str]
    values: tuple[float, ...] = ()

    @property
    def plain_dtype(self) -> torch.dtype:
        """Of plain codes."""
        if self.fp8:
            return fp8_dtype(self.name)
        return torch.int8 if self.bits == 8 and not self.grouped else torch.uint8

    def packed_shape(self, n: int, k: int, device: torch.device) -> tuple[int, ...]:
        """Of the codes of a weight [n, k] as kernels on `device` read them."""
        if self.bits == 8:
            return int8_pack.packed_shape(n, k, device)
        return bits.packed_shape(n, k, self.bits, device)

    def packed_dtype(self, device: torch.device) -> torch.dtype:
        """Of the same."""
        return int8_pack.packed_dtype(device) if self.bits == 8 else torch.uint8

    def pack(self, qdata: Tensor, k: int) -> Tensor:
        """Plain codes as kernels on their device read them."""
        if self.bits == 8:
            return int8_pack.int8_pack(self._as_int8(qdata))
        return int4_pack(qdata, k) if self.bits == 4 else intx_pack(qdata, k, self.bits)

    def unpack(self, packed: Tensor, n: int, k: int, reference: bool = False) -> Tensor:
        """The inverse of `pack`. With `reference` PyTorch unpacks, not a kernel."""
        if self.bits == 8:
            return self._from_int8((int8_unpack_reference if reference else int8_unpack)(packed, n, k))
        if self.bits == 4:
            return (int4_unpack_reference if reference else int4_unpack)(packed, n, k)
        return (intx_unpack_reference if reference else intx_unpack)(packed, n, k, self.bits)

    def rows(self, packed: Tensor, ids: Tensor, k: int) -> Tensor:
        """The plain codes of some rows of packed ones: [*ids.shape, ...]."""
        if self.bits == 8:
            return self._from_int8(int8_rows(packed, ids, k))
        if self.bits == 4:
            return int4_rows(packed, ids, k)
        if packed.is_cuda:
            return intx_unpack(packed, packed.shape[0] * TILE_N, k, self.bits)[ids]
        return bits.from_codes(bits.unpack_codes(packed, ids, k, self.bits), self.bits)

    def _as_int8(self, qdata: Tensor) -> Tensor:
        """Codes of 8 bits as `int8_pack` takes them: it turns their sign bit over."""
        return (qdata ^ 0x80 if qdata.dtype == torch.uint8 else qdata).view(torch.int8)

    def _from_int8(self, codes: Tensor) -> Tensor:
        codes = codes.view(self.plain_dtype)
        return codes ^ 0x80 if codes.dtype == torch.uint8 else codes

    def floats(
        self, qdata: Tensor, scale: Tensor, zero_point: Tensor | None, group_size: int, k: int, dtype: torch.dtype
    ) -> Tensor:
        """What plain codes [..., n, *] stand for, with scales and zero points [..., n, G]: [..., n, k] in `dtype`.

        `(value - zero_point) * scale`, computed in fp32 (in fp64 for `dtype` fp64).
        """
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        if self.grouped and not self.values and not self.fp8:
            return intx_dequantize(qdata, scale, zero_point, self.bits, group_size, k, dtype)
        if self.values:
            codes = bits.to_codes(qdata, k, self.bits)
            values = self.table(qdata.device, compute)[codes.int()]
        else:
            values = qdata.to(compute)
        if zero_point is not None and zero_point.shape[-1]:
            values = values - per_column(zero_point.to(compute), group_size, k)
        return (values * per_column(scale.to(compute), group_size, k)).to(dtype)

    def table(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
        """`values` as a tensor, [2^bits]."""
        return torch.tensor(self.values, dtype=dtype, device=device)

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
        zero_point = None if zero_point is None else untile_scale(zero_point, n)
        qdata = self.unpack(packed, n, k, reference)
        return self.floats(qdata, untile_scale(scale, n), zero_point, group_size or k, k, dtype)


def _format(name: str, text: str) -> Format:
    bits, grouped, fp8, given, int8, *values = text.split()
    ops = {"given": given} | ({} if int8 == "none" else {"int8": int8})
    return Format(name, int(bits), grouped == "1", fp8 == "1", ops, tuple(map(float.fromhex, values)))


FORMATS = {name: _format(name, text) for name, text in _C.formats().items()}


def fp8_dtype(name: str) -> torch.dtype:
    """The dtype of an fp8 format's codes."""
    return torch.float8_e5m2 if name == "fp8_e5m2" else torch.float8_e4m3fn


def fp8_format(dtype: torch.dtype | None) -> Format:
    """The format of codes of this dtype; None is e4m3fn."""
    return FORMATS["fp8_e5m2" if dtype is torch.float8_e5m2 else "fp8_e4m3"]
