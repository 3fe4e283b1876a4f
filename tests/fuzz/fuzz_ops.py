"""Calls every op with well-formed and with damaged operands, each placed against a page that nothing may touch.

    python tests/fuzz/fuzz_ops.py --calls 100000 --seed 0

A call gives the right result, or a ValueError or TypeError that names an operand; its fake kernel gives the same shapes
and dtypes, or the same error. It never crashes, hangs, writes beside its results or into its operands. Call i is of
the number seed + i alone: a failure prints it, and `--calls 1 --seed NUMBER` repeats it.

A matmul joins by its test class (tests/ops/packed_mm.py), any other op by a row of WELL_FORMED, or else with the
operands that it has in tests/gpu/operands.py.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import faulthandler
import functools
import importlib
import math
import mmap
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

HERE = Path(__file__).resolve().parent
for folder in ("", "ops", "gpu"):  # what tests share
    sys.path.append(str(HERE.parent / folder))

import torch  # noqa: E402

import aoq.ops  # noqa: E402
from aoq import _C  # noqa: E402
from aoq.ops.errors import explained  # noqa: E402

Tensor = torch.Tensor
FLOATS = (torch.bfloat16, torch.float16, torch.float32)
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
DTYPES = sorted({dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}, key=str)
NORMAL_DTYPES = [d for d in DTYPES if d.itemsize and not re.search(r"\d[xX]|bits|q?u?int[1-7]$|qu?int|e8m0|x2", str(d))]
INTEGERS = (-1, 0, 1, 7, 8, 2**31 - 1, 2**31, 2**32, 2**49, 2**62, 2**63 - 64, 2**63 - 1, -(2**63), 2**63, 10**20)
HUGE = (2**49, 2**58, 2**61, 2**63 - 1)  # nothing that a machine could hold, nor copy
WEIGHTS = 256  # of a matmul that calls choose from


class Failure(Exception):
    """A call did what none may."""


# ---- memory that ends, or begins, where nothing may be touched


class Arena:
    """Slots for operands between pages without access. `check` finds what was written to them, or around them."""

    SLOTS, BYTES, PAGE, CANARIES = 16, 1 << 18, 4096, 192

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
        libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        size = self.SLOTS * (self.BYTES + self.PAGE) + self.PAGE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self.address = libc.mmap(None, size, 0, flags, -1, 0)
        self.starts = [self.PAGE + slot * (self.BYTES + self.PAGE) for slot in range(self.SLOTS)]
        for start in self.starts:
            if libc.mprotect(self.address + start, self.BYTES, mmap.PROT_READ | mmap.PROT_WRITE):
                raise OSError(ctypes.get_errno(), "mprotect")
        self.buffer = (ctypes.c_char * size).from_address(self.address)
        self.taken: list[tuple[int, int, bytes]] = []  # where it begins with its canaries, where it ends, what it held

    def start_call(self) -> None:
        self.taken.clear()

    def empty(self, count: int, dtype: torch.dtype, place: str) -> Tensor | None:
        """place: "end", "begin", or "odd": at the end, but for one byte, so that elements are misaligned."""
        length = count * dtype.itemsize
        if length + 2 * self.CANARIES > self.BYTES or len(self.taken) == self.SLOTS:
            return None
        start = self.starts[len(self.taken)]
        end = start + self.BYTES
        at = start if place == "begin" else end - length - (place == "odd")
        first, last = max(start, at - self.CANARIES), min(end, at + length + self.CANARIES)
        ctypes.memset(self.address + first, 0xA5, last - first)
        ctypes.memset(self.address + at, 0xFF, length)  # between strided elements: NaN
        self.taken.append((first, last, b""))
        return torch.frombuffer(self.buffer, dtype=dtype, count=count, offset=at)

    def remember(self) -> None:
        self.taken = [(first, last, self.buffer[first:last]) for first, last, _ in self.taken]

    def check(self) -> None:
        for first, last, held in self.taken:
            if self.buffer[first:last] != held:
                raise Failure("an operand, or memory beside it, was written to")


class Guard:
    """guard.c, where the process was started with it: what a call allocates ends at a page without access, too."""

    def __init__(self) -> None:
        library = os.environ.get("AOQ_FUZZ_GUARD")
        self._arm = ctypes.CDLL(library).guard_arm if library else lambda on: None

    def __enter__(self) -> None:
        self._arm(1)

    def __exit__(self, *exception: object) -> None:
        self._arm(0)


# ---- well-formed calls: a row makes (operands by name, what checks the results, or None)


class Draw(random.Random):
    """The choices of one call."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.generator = torch.Generator().manual_seed(self.getrandbits(32))

    def often(self, percent: float) -> bool:
        return self.random() * 100 < percent

    def size(self, most: int, large: int) -> int:
        """From 1 to `most`, mostly small or about a multiple of 16; rarely up to `large`."""
        if self.often(1):
            return self.randint(1, large)
        if self.often(40):
            return min(most, max(1, 16 * self.randint(1, max(1, most // 16)) + self.randint(-1, 1)))
        return self.randint(1, self.randint(1, most))

    def floats(self, *shape: int, dtype: torch.dtype | None = None, finite: bool = False) -> Tensor:
        x = torch.randn(*shape, generator=self.generator)
        kind = self.random()
        if kind < 0.3:
            x = x * 2.0 ** self.randint(-20, 10)
        elif kind < 0.4:
            x = x + self.randint(-8, 8)
        elif kind < 0.45:
            x = x * 0
        elif kind < 0.48 and x.numel() and not finite:
            x.view(-1)[self.randrange(x.numel())] = self.choice((math.nan, math.inf, -math.inf))
        return (
            x.clamp(-60000, 60000).to(dtype or self.choice(FLOATS))
            if kind < 0.45
            else x.to(dtype or self.choice(FLOATS))
        )

    def integers(self, *shape: int, dtype: torch.dtype) -> Tensor:
        info = torch.iinfo(dtype)
        return torch.randint(info.min, info.max + 1, shape, dtype=dtype, generator=self.generator)

    def rows(self, m: int, k: int, *others: tuple[int, int]) -> tuple[int, ...]:
        """A shape with m rows of k."""
        if m == 1 and self.often(30):
            return (k,)
        if m % 2 == 0 and self.often(20):
            return (2, m // 2, k)
        return (m, k)


def reference_of(op: str, exact: bool = True):
    """Checks results against the op's reference: to the bit, or codes to a step."""

    def check(args, results) -> None:
        wanted = getattr(aoq.ops, f"{op}_reference")(**args)
        for got, want in zip(results, [wanted] if isinstance(wanted, Tensor) else wanted, strict=True):
            if (got.shape, got.dtype) != (want.shape, want.dtype):
                raise Failure(f"expected {described(want)}, got {described(got)}")
        if len(results) == 1:
            compare("result", results[0], wanted, exact)
            return
        qdata, scale, *others = results
        # The codes of others mean nothing; nor do those of scales that are 0 as far as they are compared.
        rows = ~scale.float().isnan() & (exact | (scale.float() >= 1e-28))
        compare("scale", scale, wanted[1], exact)
        if rows.all():
            compare("qdata", qdata, wanted[0], exact)
        elif rows.any():
            flat = (part.view(torch.uint8)[rows[..., 0]] for part in (qdata, wanted[0]))
            compare("qdata", *(part.view(qdata.dtype) for part in flat), exact)
        if rows.all() and exact:
            for got, want in zip(others, wanted[2:], strict=True):
                compare("zero_point", got, want, exact)

    return check


def compare(what: str, got: Tensor, wanted: Tensor, exact: bool) -> None:
    if exact or not got.numel():
        right = same(got, wanted)
    elif got.dtype.is_floating_point and got.dtype.itemsize > 1:
        right = torch.allclose(got, wanted, rtol=1e-5, atol=1e-30, equal_nan=True)
    else:
        right = bool(((steps(got) - steps(wanted)).abs() <= 1).all())
    if not right:
        raise Failure(f"{what}: not what the reference gives: {got.flatten()[:8]}.. for {wanted.flatten()[:8]}..")


def same(a: Tensor, b: Tensor) -> bool:
    """To the bit, but for which NaN it is."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype.is_floating_point and a.dtype.itemsize > 1:
        return bool(((a == b) | (a.isnan() & b.isnan())).all())
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8)) if a.dim() else bool(a == b)


def steps(codes: Tensor) -> Tensor:
    """Codes as integers whose neighbours differ by 1."""
    if codes.dtype in (torch.int8, torch.uint8):
        return codes.int()
    byte = codes.view(torch.uint8).int()
    return torch.where(byte < 128, byte, 128 - byte)


def groups(draw: Draw, k: int) -> int:
    if draw.often(15):
        return draw.choice((k, k + 1, 2**31, 2**62, 2**63 - 1, 2**63 - k))
    return 8 * draw.randint(1, draw.choice((2, 8, 40)))


@functools.cache
def weight_of(op: str, index: int):
    """One of the weights that calls of a matmul share: making one takes longer than multiplying."""
    draw, tests = Draw(index), matmuls()[op]
    n, k = draw.size(70, 200), draw.size(150, 500)
    options = {"scale_dtype": draw.choice(FLOATS), "seed": index}
    return tests.weight(n, k, groups(draw, k), draw.choice(tests.variants), **options)


@functools.cache
def matmuls():
    """The test class of each matmul."""
    from packed_mm import PackedMmTests

    for file in sorted((HERE.parent / "ops").glob("test_*_mm.py")):
        importlib.import_module(file.stem)

    def below(cls):
        return [cls, *(found for sub in cls.__subclasses__() for found in below(sub))]

    return {cls.weight.op: cls for cls in below(PackedMmTests) if hasattr(cls, "weight")}


def matmul(op: str, draw: Draw):
    from packed_mm import check as check_rounding

    weight, m = weight_of(op, draw.randrange(WEIGHTS)), draw.choice((0, 1, 1, 2, 3, draw.size(40, 90)))
    x = draw.floats(*draw.rows(m, weight.k))
    bias = draw.floats(weight.n, finite=True) if draw.often(50) else None

    def check(args, results) -> None:
        rows = args["x"].reshape(-1, weight.k)
        finite = rows.isfinite().all(-1)
        out = results[0].reshape(-1, weight.n)
        if not finite.all():
            if type(matmuls()[op]).__name__ and args.get("granularity") == "tensor":
                return  # one row is in the scale of all
            rows, out = rows[finite], out[finite]
        try:
            check_rounding(out, rows, weight, args["bias"])
        except AssertionError as error:
            raise Failure(str(error)) from None

    return {"x": x, "bias": bias, **weight.parts}, check


def int4_pack(draw: Draw):
    n, k = draw.size(70, 200), draw.size(300, 1000)
    return {"qdata": draw.integers(n, -(-k // 2), dtype=torch.uint8), "k": k}, reference_of("int4_pack")


def int4_unpack(draw: Draw):
    n, k = draw.size(70, 200), draw.size(300, 1000)
    packed = draw.integers(-(-n // 16), -(-k // 8), 64, dtype=torch.uint8)
    return {"packed": packed, "n": n, "k": k}, reference_of("int4_unpack")


def int8_pack(draw: Draw):
    return {"qdata": draw.integers(draw.size(70, 200), draw.size(300, 1000), dtype=torch.int8)}, reference_of(
        "int8_pack"
    )


def int8_unpack(draw: Draw):
    n, k = draw.size(70, 200), draw.size(300, 1000)
    packed = draw.integers(-(-n // 16), -(-k // 4), 64, dtype=torch.uint8)
    return {"packed": packed, "n": n, "k": k}, reference_of("int8_unpack")


def int4_quantize(draw: Draw):
    n, k = draw.choice((0, 1, draw.size(20, 60))), draw.size(150, 500)
    mapping = draw.choice(("symmetric", "asymmetric", "asymmetric", "hqq"))
    check = None if mapping == "hqq" or n == 0 else reference_of("int4_quantize")  # hqq has several as good
    w = draw.floats(n, k)
    return {
        "w": w,
        "group_size": groups(draw, k),
        "mapping": mapping,
        "scale_dtype": draw.choice((None, *FLOATS)),
    }, check


def int8_quantize(draw: Draw):
    x = draw.floats(*draw.rows(draw.choice((0, 1, draw.size(20, 60))), draw.size(150, 500)))
    args = {"x": x, "mapping": draw.choice(("symmetric", "asymmetric")), "scale_dtype": draw.choice((None, *FLOATS))}
    return args, reference_of("int8_quantize")


def fp8_quantize(draw: Draw):
    granularity = draw.choice(("row", "tensor"))
    m = draw.choice((int(granularity == "tensor"), 1, draw.size(20, 60)))
    lb, ub = draw.choice(((None, None), (0.5, None), (None, 2.0), (0.0, 1.0)))
    args = {"x": draw.floats(*draw.rows(m, draw.size(150, 500))), "granularity": granularity, "dtype": draw.choice(FP8)}
    return args | {"lb": lb, "ub": ub}, reference_of("fp8_quantize")


def codes_and_layout(draw: Draw, k: int):
    dtype = draw.choice((torch.int8, *FP8))
    mapping = draw.choice(("symmetric", "asymmetric")) if dtype == torch.int8 else "symmetric"
    sums = draw.choice((0, 0, 1, 16, draw.randint(1, k + 20), 2**63 - 1))
    return {"dtype": dtype, "mapping": mapping, "sum_group": sums, "permute": draw.often(50)}


def rmsnorm_quantize(draw: Draw):
    k, dtype = draw.size(150, 500), draw.choice(FLOATS)
    shape = draw.rows(draw.choice((0, 1, draw.size(20, 60))), k)
    residual = draw.floats(*shape, dtype=dtype) if draw.often(60) else None
    args = {"x": draw.floats(*shape, dtype=dtype), "weight": draw.floats(k, finite=True), "residual": residual}
    return args | {"eps": draw.choice((1e-6, 1e-3))} | codes_and_layout(draw, k), reference_of(
        "rmsnorm_quantize", False
    )


def silu_mul_quantize(draw: Draw):
    k, dtype = draw.size(150, 500), draw.choice(FLOATS)
    shape = draw.rows(draw.choice((0, 1, draw.size(20, 60))), k)
    args = {"gate": draw.floats(*shape, dtype=dtype), "up": draw.floats(*shape, dtype=dtype)}
    return args | codes_and_layout(draw, k), reference_of("silu_mul_quantize", False)


WELL_FORMED = {
    row.__name__: row
    for row in (
        int4_pack,
        int4_unpack,
        int8_pack,
        int8_unpack,
        int4_quantize,
        int8_quantize,
        fp8_quantize,
        rmsnorm_quantize,
        silu_mul_quantize,
    )
}


def well_formed(op: str, draw: Draw):
    if op in matmuls():
        return matmul(op, draw)
    if op in WELL_FORMED:
        return WELL_FORMED[op](draw)
    import operands  # tests/gpu

    values = operands.operands(op, "cpu")
    return {argument.name: value for argument, value in zip(schema(op).arguments, values, strict=False)}, None


# ---- damage: another operand, which may still be one that the op takes


def damaged(value, argument, args, draw: Draw):
    """value: of `argument`, which the schema describes, in a call of `args`."""
    kind = str(argument.real_type)
    if "Tensor" in kind:
        return damaged_tensor(value, args, draw)
    if "ScalarType" in kind:
        return draw.choice((*DTYPES, None, "float32", 3))  # of integers that are none, torch itself makes a crash
    if "int" in kind:
        near = (value + draw.choice((-8, -1, 1, 8)),) * 3 if isinstance(value, int) else ()
        return draw.choice((*INTEGERS, *near, None, 1.5, "8", True, torch.tensor(8), torch.ones(2)))
    if "float" in kind:
        return draw.choice((0.0, -1.0, 1e300, math.nan, math.inf, -math.inf, None, "x", 10**400, 1e-300, True))
    if "bool" in kind:
        return draw.choice((True, False, None, 2, "x"))
    return draw.choice(("", "hqq", "asymmetric", "row", "tensor", "\0", "\udcff", "x" * 1000, None, 1, b"row"))


def damaged_tensor(tensor, args, draw: Draw):
    others = [other for other in args.values() if isinstance(other, Tensor)]
    if draw.often(15) or not isinstance(tensor, Tensor) or tensor.is_nested:
        return draw.choice((None, 5, "x", [1.0], torch.Size([1]), *others, torch.ones(3), torch.empty(0)))
    shape = list(tensor.shape)
    axis = draw.randrange(len(shape)) if shape else 0
    choice = draw.randrange(14)
    with contextlib.suppress(RuntimeError, IndexError):  # not every tensor can be damaged in every way
        if choice == 0:
            return tensor.to(draw.choice(NORMAL_DTYPES))
        if choice == 1:
            return torch.empty(shape, dtype=draw.choice(DTYPES))
        if choice == 2:
            return tensor.select(axis, 0)
        if choice == 3:
            return tensor.unsqueeze(draw.randint(0, len(shape)))
        if choice == 4:
            return tensor.narrow(axis, 0, max(0, shape[axis] - draw.choice((1, 1, 8, 16, shape[axis]))))
        if choice == 5:
            return torch.cat((tensor, tensor.narrow(axis, 0, 1)), axis)
        if choice == 6:
            return draw.choice(
                (
                    lambda: tensor.to_sparse(),
                    lambda: tensor.to_sparse_csr(),
                    lambda: tensor.float().to_mkldnn(),
                    lambda: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
                    lambda: torch.nested.nested_tensor([tensor, tensor]),
                    lambda: torch._efficientzerotensor(shape, dtype=tensor.dtype),
                    lambda: torch._neg_view(tensor) if tensor.dtype in FLOATS else tensor,  # torch copies few others
                    lambda: tensor.to(torch.complex64).conj(),
                )
            )()
        if choice == 7:
            return tensor.to("meta")
        if choice == 8:  # huge, with nothing behind it
            shape[axis] = draw.choice(HUGE)
            if draw.often(50):
                shape[draw.randrange(len(shape))] = 0
                return torch.empty(shape, dtype=tensor.dtype)
            return tensor.narrow(axis, 0, 1).expand(shape)
        if choice == 9:
            return tensor[(0,) * len(shape)]
        if choice == 10:
            return tensor.narrow(axis, 0, 1).expand(shape)
        if choice == 11:  # rows that overlap, columns in any order
            return tensor.as_strided(shape, [draw.choice((0, 1, 1, 2)) for _ in shape])
        if choice == 12:  # strides of sizes 1 say nothing
            return tensor.narrow(axis, 0, 1).as_strided(
                [1 if i == axis else size for i, size in enumerate(shape)],
                [2**62 if i == axis else stride for i, stride in enumerate(tensor.stride())],
            )
        if choice == 13 and tensor.dtype.is_floating_point:
            return tensor.detach().clone().requires_grad_()
    return draw.choice((*others, torch.ones(2, 3)))


# ---- calling


@functools.cache
def schema(op: str):
    return getattr(torch.ops.aoq, op).default._schema


def described(value) -> str:
    if not isinstance(value, Tensor):
        return repr(value)[:80]
    if value.is_nested:
        return "nested"
    text = f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if value.layout != torch.strided:
        return f"{text} {value.layout}"
    if value.dim() and not value.is_contiguous():
        text += f" strides {list(value.stride())}"
    return text + ("" if value.device.type == "cpu" else f" {value.device}")


def outcome(op: str, function, args):
    """("ok", results) or (the error's type, the operand that it names, its text)."""
    try:
        out = function(**args)
    except RuntimeError as error:
        found = explained(getattr(torch.ops.aoq, op).default, args, error)
    except Exception as error:
        found = error
    else:
        return "ok", [out] if isinstance(out, Tensor) else list(out)
    named = re.match(rf"aoq::{op}: (\w+): ", str(found))
    if type(found) not in (ValueError, TypeError) or not named:
        raise Failure(f"{type(found).__name__}: {found}") from found
    if named[1] not in [argument.name for argument in schema(op).arguments]:
        raise Failure(f"{type(found).__name__} of no operand: {found}")
    return type(found).__name__, named[1], str(found)


def placed(tensor, draw: Draw, arena: Arena):
    """The same values between guards, in any layout of the same shape, and maybe misaligned."""
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.device.type != "cpu":
        return tensor
    if tensor.dtype not in NORMAL_DTYPES or tensor.is_quantized or tensor.is_neg() or tensor.is_conj():
        return tensor
    if not 0 < tensor.numel() < 1 << 16 or tensor._is_zerotensor() or tensor.is_nested:
        return tensor
    shape, strides = tuple(tensor.shape), list(tensor.stride())
    own = shape and tensor.is_contiguous()
    if own:
        layout = draw.random()
        if layout < 0.2 and len(shape) == 2:  # longer rows
            strides = [shape[1] + draw.randint(0, 9), 1]
        elif layout < 0.3:  # columns first
            strides = [math.prod(shape[:i]) for i in range(len(shape))]
        elif layout < 0.4:  # every other element
            strides = [2 * math.prod(shape[i + 1 :]) for i in range(len(shape))]
        else:
            own = False
    place = draw.choice(("end", "end", "end", "begin"))
    if draw.often(2) and 1 < tensor.dtype.itemsize < 16:  # torch itself moves aligned elements of 16 bytes
        place = "odd"
    count = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    memory = arena.empty(count, tensor.dtype, place)
    if memory is None:
        return tensor
    copy = memory.as_strided(shape, strides)
    if own:
        copy.copy_(tensor.detach())
    else:  # with what lies between its elements, which may overlap
        memory.copy_(tensor.detach().as_strided((count,), (1,)))
    return copy.requires_grad_() if tensor.requires_grad else copy


def plain(value):
    """The same values, contiguous, in memory of their own."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type != "cpu":
        return value
    return value.detach().clone(memory_format=torch.contiguous_format).requires_grad_(value.requires_grad)


def as_meta(value, argument):
    if not isinstance(value, Tensor) or "Tensor" not in str(argument.real_type):
        return value
    if value.layout != torch.strided or value.is_quantized or value.is_nested:
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


class Fuzzer:
    def __init__(self, progress: Progress) -> None:
        self.arena, self.guard, self.ops, self.isas = Arena(), Guard(), _C.ops(), _C.isas()
        self.text, self.progress = "", progress

    def call(self, number: int) -> str:
        """Makes call `number`; what became of it. Raises Failure."""
        draw = Draw(number)
        op, isa = draw.choice(self.ops), draw.choice(self.isas)
        _C.set_isa(isa)
        args, check = well_formed(op, draw)
        change, changes = None, draw.choice((0, 0, 0, 0, 1, 1, 1, 1, 1, 2))
        for _ in range(changes):
            change = draw.choice(schema(op).arguments)
            value = damaged(args.get(change.name, change.default_value), change, args, draw)
            args[change.name] = value
            check = None
        wrapper = getattr(aoq.ops, op)
        known = wrapper.__wrapped__ if hasattr(wrapper, "__wrapped__") else wrapper
        direct = draw.often(20) or any(name not in known.__code__.co_varnames for name in args)
        function = getattr(torch.ops.aoq, op).default if direct else wrapper

        self.arena.start_call()
        call = {name: placed(value, draw, self.arena) for name, value in args.items()}
        self.text = f"{op} under {isa}{' directly' if direct else ''}{f', {change.name} damaged' if change else ''}: "
        self.text += ", ".join(f"{name}={described(value)}" for name, value in call.items())
        self.progress.write(number, self.text)
        self.arena.remember()
        with self.guard:
            real = outcome(op, function, call)
        self.arena.check()
        if any(isinstance(value, Tensor) and value.is_meta for value in args.values()):
            return real[0]  # that was the fake
        if real[0] == "ok":
            if check:
                check(args, real[1])
            again = outcome(op, function, {name: plain(value) for name, value in args.items()})
            if again[0] != "ok" or not all(map(same, real[1], again[1])):
                raise Failure("another result than of the same values in memory of their own")
            if any(not part.is_contiguous() for part in real[1]):
                raise Failure("a result that is not contiguous")
        self.check_fake(op, function, args, real, changes)
        return real[0]

    def check_fake(self, op: str, function, args, real, changes: int) -> None:
        if real[0] == "ValueError" and "finite" in real[2]:
            return  # values, which it has not
        kinds = {argument.name: argument for argument in schema(op).arguments}
        fake = outcome(op, function, {name: as_meta(value, kinds[name]) for name, value in args.items()})
        if changes > 1 and "ok" not in (real[0], fake[0]):
            return  # which of several faults is met first does not matter
        if fake[:1] != real[:1] or (real[0] != "ok" and fake[1] != real[1]):
            raise Failure(f"{verdict(real)}\n  its fake: {verdict(fake)}")
        if real[0] == "ok":
            for got, of_fake in zip(real[1], fake[1], strict=True):
                if (got.shape, got.dtype, got.stride()) != (of_fake.shape, of_fake.dtype, of_fake.stride()):
                    raise Failure(f"{verdict(real)}\n  its fake: {verdict(fake)}")


def verdict(outcome) -> str:
    return ", ".join(map(described, outcome[1])) if outcome[0] == "ok" else f"{outcome[0]}: {outcome[2]}"


# ---- the process that calls, and the one that starts it, again after a crash


class Progress:
    """A file in which a worker says what it does, for the process that waits for it."""

    BYTES, TEXT = 4096, 8

    def __init__(self, path: Path) -> None:
        with open(path, "a+b") as file:
            file.truncate(self.BYTES)
            self.shared = mmap.mmap(file.fileno(), self.BYTES)

    def write(self, number: int, text: str) -> None:
        said = text.encode(errors="replace")[: self.BYTES - self.TEXT - 1] + b"\0"
        struct.pack_into("<q", self.shared, 0, number)
        self.shared[self.TEXT : self.TEXT + len(said)] = said

    def read(self) -> tuple[int, str]:
        text = self.shared[self.TEXT :].split(b"\0")[0].decode(errors="replace")
        return struct.unpack_from("<q", self.shared)[0], text


def work(seed: int, calls: int, progress: Progress) -> int:
    warnings.filterwarnings("ignore")
    faulthandler.enable()
    fuzzer, failures, counts = Fuzzer(progress), 0, {}
    for number in range(seed, seed + calls):
        try:
            progress.write(number, "")
            result = fuzzer.call(number)
        except Exception as error:
            failures += 1
            kind = str(error) if isinstance(error, Failure) else traceback.format_exc()
            print(f"FAILED: --seed {number} --calls 1\n  {fuzzer.text}\n  {kind}", flush=True)
            result = "failed"
            if failures >= 20:
                print("Too many failures.", flush=True)
                return 1
        counts[result] = counts.get(result, 0) + 1
    print(", ".join(f"{count:,} {result}" for result, count in sorted(counts.items())), flush=True)
    return 1 if failures else 0


def built_guard(folder: Path) -> Path | None:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    library = folder / "guard.so"
    if not compiler:
        return None
    command = [compiler, "-shared", "-fPIC", "-O2", "-o", library, HERE / "guard.c", "-ldl", "-lpthread"]
    return library if subprocess.run(command).returncode == 0 else None


def run(seed: int, calls: int, patience: float) -> int:
    """Starts workers, one after the other, until all calls are made."""
    print(f"{calls:,} calls from seed {seed}", flush=True)
    failed, end = 0, seed + calls
    with tempfile.TemporaryDirectory() as folder:
        environment = dict(os.environ, OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "2"))
        guard = built_guard(Path(folder))
        if guard:
            environment["AOQ_FUZZ_GUARD"] = str(guard)
            environment["LD_PRELOAD"] = f"{guard} {environment.get('LD_PRELOAD', '')}".strip()
            # It comes before the sanitizer's own allocator, which it stands before on purpose.
            options = "verify_asan_link_order=0:detect_leaks=0:allocator_may_return_null=1:handle_abort=1"
            environment["ASAN_OPTIONS"] = f"{options}:{environment.get('ASAN_OPTIONS', '')}"
        else:
            print("No C compiler: what calls allocate is not guarded.", flush=True)
        progress = Progress(Path(folder) / "progress")
        while seed < end:
            progress.write(seed, "starting")
            arguments = ["--worker", f"{folder}/progress", "--seed", str(seed), "--calls", str(end - seed)]
            worker = subprocess.Popen([sys.executable, __file__, *arguments], env=environment)
            last, since = seed, time.monotonic()
            while worker.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    worker.wait(1)
                now, text = progress.read()
                if now != last:
                    last, since = now, time.monotonic()
                elif time.monotonic() - since > patience:
                    print(f"HUNG for {patience:.0f} s: --seed {now} --calls 1\n  {text}", flush=True)
                    worker.send_signal(signal.SIGABRT)  # with the stack
                    worker.wait()
            if worker.returncode in (0, 1):
                return 1 if failed or worker.returncode else 0
            now, text = progress.read()
            failed += 1
            print(f"CRASHED ({worker.returncode}): --seed {now} --calls 1\n  {text}", flush=True)
            if failed >= 20:
                return 1
            seed = now + 1
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first call; the next ones count on")
    parser.add_argument("--patience", type=float, default=120, help="seconds after which a call hangs")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(options.seed, options.calls, Progress(Path(options.worker)))
    return run(options.seed, options.calls, options.patience)


if __name__ == "__main__":
    sys.exit(main())
