"""The structs that kernels take, as csrc/ops/<op>/<op>.h declares them."""

import contextlib
import ctypes
import mmap

import torch

I64, POINTER = ctypes.c_int64, ctypes.c_void_p


class Args(ctypes.Structure):
    """The one struct that a kernel takes; tensors become pointers and must outlive it."""

    def __init__(self, **fields):
        super().__init__(**{k: v.data_ptr() if hasattr(v, "data_ptr") else v for k, v in fields.items()})
        self.given = fields

    @contextlib.contextmanager
    def fenced(self):
        """Points to copies of the tensors that end where memory does: to read or write beyond crashes. Copied back."""
        with contextlib.ExitStack() as stack:
            for name, value in self.given.items():
                if isinstance(value, Args):
                    stack.enter_context(value.fenced())
                    setattr(self, name, value)
                elif hasattr(value, "data_ptr") and value.numel():
                    spans = ((n - 1) * stride for n, stride in zip(value.shape, value.stride(), strict=True))
                    flat = value.as_strided((1 + sum(spans),), (1,))
                    copy = fenced_copy(flat)
                    stack.callback(flat.copy_, copy)
                    setattr(self, name, copy.data_ptr())
            yield


def fenced_copy(flat):
    """A copy of a contiguous tensor, as aligned to 16 bytes, less than that before a page that cannot be touched."""
    page, over = mmap.PAGESIZE, flat.data_ptr() % 16
    size = -(-(flat.nbytes + 32) // page) * page
    memory = mmap.mmap(-1, size + 2 * page)
    first = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + page
    ctypes.memset(first, 0xFF, size)
    for fence in (first - page, first + size):
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(fence), ctypes.c_size_t(page), 0) == 0
    start = first + size - flat.nbytes
    start -= (start - over) % 16
    offset = start - first + page
    copy = torch.frombuffer(memory, dtype=flat.dtype, offset=offset, count=flat.numel())
    return copy.copy_(flat)


class Int4Pack(Args):
    _fields_ = (("n", I64), ("k", I64), ("qdata", POINTER), ("packed", POINTER))


class Int4Unpack(Args):
    _fields_ = (("n", I64), ("k", I64), ("packed", POINTER), ("qdata", POINTER))


class Int4Quantize(Args):
    _fields_ = (
        *(("n", I64), ("k", I64), ("group", I64), ("bits", ctypes.c_int), ("mapping", ctypes.c_int8), ("w", POINTER)),
        *(("w_dtype", ctypes.c_int8), ("w_stride", I64), ("qdata", POINTER), ("scale", POINTER)),
        *(("zero_point", POINTER), ("scale_dtype", ctypes.c_int8), ("bad_row", POINTER)),
    )


class QuantizeRows(Args):
    _fields_ = (
        *(("m", I64), ("k", I64), ("source", ctypes.c_int8), ("x", POINTER), ("x_dtype", ctypes.c_int8)),
        *(("x_stride", I64), ("other", POINTER), ("other_stride", I64), ("weight", POINTER)),
        *(("weight_dtype", ctypes.c_int8), ("eps", ctypes.c_float), ("residual_out", POINTER)),
        *(("codes", ctypes.c_int8), ("asymmetric", ctypes.c_bool), ("per_tensor", ctypes.c_bool)),
        *(("lb", ctypes.c_float), ("ub", ctypes.c_float), ("qdata", POINTER), ("scale", POINTER)),
        *(("zero_point", POINTER), ("scale_dtype", ctypes.c_int8), ("permute", ctypes.c_bool)),
        ("padded", ctypes.c_bool),
        *(("group_sum", POINTER), ("sum_group", I64), ("workspace", POINTER)),
    )


class X(Args):
    _fields_ = (
        *(("data", POINTER), ("dtype", ctypes.c_int8), ("stride", I64)),
        *(("fp8", POINTER), ("asymmetric", ctypes.c_bool)),
    )


class Scales(Args):
    _fields_ = (("scale", POINTER), ("zero_point", POINTER), ("dtype", ctypes.c_int8))


class W(Args):
    _fields_ = (("stream", POINTER), ("scales", Scales), ("sum", POINTER), ("e5m2", ctypes.c_bool))


class Out(Args):
    _fields_ = (
        *(("data", POINTER), ("dtype", ctypes.c_int8), ("bias", POINTER), ("bias_dtype", ctypes.c_int8)),
        *(("row_scale", POINTER), ("row_scale_stride", I64), ("row_zero", POINTER)),
    )


class PackedMm(Args):
    _fields_ = (
        *(*((name, I64) for name in ("m", "n", "k", "group")), ("x", X), ("w", W), ("out", Out)),
        *(("expert_tiles", POINTER), ("expert_tile_count", I64), ("expert_ends", POINTER), ("experts", I64)),
    )

    @classmethod
    def of(
        cls,
        x,
        k,
        group,
        stream,
        scale,
        out,
        *,
        zero_point=None,
        w_sum=None,
        e5m2=False,
        bias=None,
        experts=None,
        **of_rows,
    ):
        """Of tensors; x that is int8 codes was of out's dtype. experts: fields that tell whose rows are whose."""
        (m, n), scales = out.shape, Scales(scale=scale, zero_point=zero_point, dtype=DTYPES[scale.dtype])
        return cls(
            **dict(m=m, n=n, k=k, group=group, x=X(data=x, dtype=DTYPES[out.dtype], stride=x.stride(0))),
            w=W(stream=stream, scales=scales, sum=w_sum, e5m2=e5m2),
            out=Out(
                **dict(data=out, dtype=DTYPES[out.dtype], row_scale_stride=1, **of_rows),
                **({} if bias is None else dict(bias=bias, bias_dtype=DTYPES[bias.dtype])),
            ),
            **(experts or {}),
        )


class ExpertRows(Args):
    _fields_ = (
        *(("offsets", POINTER), ("offsets_int64", ctypes.c_bool), ("experts", I64), ("m", I64)),
        *(("tokens", ctypes.c_int), ("planes", ctypes.c_int), ("most", I64), ("tiles", POINTER), ("ends", POINTER)),
    )


class CodesAsBf16(Args):
    _fields_ = (("m", I64), ("k", I64), ("codes", POINTER), ("codes_stride", I64), ("x", POINTER), ("pitch", I64))


class Plan(Args):
    _fields_ = (*((name, ctypes.c_int) for name in ("tokens", "log_warps_k", "log_split")), ("chunk", I64))


class NibbleSkinny(Args):
    _fields_ = (("mm", PackedMm), ("plan", Plan), ("workspace", POINTER))


class WidePlan(Args):
    _fields_ = (("tokens", ctypes.c_int), ("split", ctypes.c_int))


class NibbleWide(Args):
    _fields_ = (("mm", PackedMm), ("plan", WidePlan), ("workspace", POINTER))


class WgmmaPlan(Args):
    _fields_ = tuple((name, ctypes.c_int) for name in ("tokens", "halves", "split", "stages"))


class NibbleWgmma(Args):
    _fields_ = (("mm", PackedMm), ("plan", WgmmaPlan), ("workspace", POINTER))


class WeightMmSkinny(NibbleSkinny):
    """int8_weight_mm and fp8_weight_mm, few rows."""


class WeightMmWide(NibbleWide):
    """Many rows."""


DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
CODES = {torch.int8: 0, torch.float8_e4m3fn: 1, torch.float8_e5m2: 2}
SOURCES = {"given": 0, "rmsnorm": 1, "silu_mul": 2}
MAPPINGS = {"symmetric": 0, "asymmetric": 1, "hqq": 2}
