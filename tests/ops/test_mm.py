"""mm against fp64: every format of the library that has no op of its own, and the others on a few shapes."""

import pytest
import torch
from packed_mm import DTYPES, GROUPED_SHAPES, Int8XTests, Int8XWeight, PackedMmTests, PackedWeight, check

import aoq.ops
from aoq import _C
from aoq.ops import intx_pack, intx_quantize, mm, tile_scale
from aoq.ops.bits import from_codes
from aoq.ops.mm import FORMATS

OTHERS = [f for f in FORMATS.values() if f.grouped and f.name != "int4"]
INTEGERS = [f for f in OTHERS if "int8" in f.ops]
# Few formats stand for all in what takes long: of integers one whose codes fit nibbles and, if there is one, one whose
# do not; of those for x as given alone a table.
THREE = min(INTEGERS, key=lambda f: abs(f.bits - 3))
WIDEST = max(INTEGERS, key=lambda f: f.bits)
TABLE = next((f for f in OTHERS if f.name == "nf4"), WIDEST)
# A unit has up to 32 columns, so groups of 8 and of 40 are not whole ones.
SHAPES = [*GROUPED_SHAPES, (48, 320, 40), (33, 520, 64), (20, 70, 32)]


def random_codes(n, k, format, generator):
    """Of a table, or of finite floats, with scales of either sign and zero points near 0."""
    codes = torch.randint(0, 2**format.bits, (n, k), dtype=torch.uint8, generator=generator)
    if format.fp8:
        codes[(codes & 0x7F) > 0x7B] = 0
    return codes.view(format.plain_dtype) if format.bits == 8 else from_codes(codes, format.bits)


def parts_of(n, k, group, mapping, format, scale_dtype, seed, qdata):
    """The operands of a random weight, its exact values and a bound of a value's share before zero points cancel."""
    generator = torch.Generator().manual_seed(seed)
    if format in INTEGERS:
        w = torch.randn(n, k, generator=generator) * torch.rand(n, 1, generator=generator).exp()
        codes, scale, zero = intx_quantize(w.to(scale_dtype), format.bits, group, mapping)
        most = 2**format.bits
    else:
        codes, groups = random_codes(n, k, format, generator), -(-k // min(group, k))
        scale, zero = (torch.randn(n, groups, generator=generator).to(scale_dtype) for _ in range(2))
        zero, most = zero[:, : groups * (mapping == "asymmetric")], max(map(abs, format.values or (448,)))
    qdata = codes if qdata is None else qdata
    exact = format.floats(qdata, scale.double(), zero.double(), group, k, torch.float64)
    step = scale.double().abs().repeat_interleave(min(group, k), 1)[:, :k]
    zero_point = None if mapping == "symmetric" else tile_scale(zero)
    parts = dict(packed=format.pack(qdata, k), scale=tile_scale(scale), zero_point=zero_point)
    return parts | dict(n=n, format=format.name, group_size=group), exact, most * step + exact.abs()


class Weight(PackedWeight):
    op = "mm"

    def __init__(self, n, k, group, variant, scale_dtype=torch.bfloat16, seed=0, qdata=None):
        format, mapping = variant
        parts, exact, addends = parts_of(n, k, group, mapping, format, scale_dtype, seed, qdata)
        self.kernels_of, self.unit_bytes = format.ops["given"], parts["packed"].shape[-1]
        # What a table has in bf16 is rounded, where it is not exact there.
        self.rounded = (
            addends if not format.table(addends.device).equal(format.table(addends.device).bfloat16().float()) else None
        )
        super().__init__(exact, addends, w_sum=None, **parts)

    def product(self, x):
        """With bf16 x of more rows than a tile, kernels for AVX512_BF16 may round each weight to bf16 first."""
        expected, rounding = super().product(x)
        kernel = _C.last_kernel()
        if x.dtype == torch.bfloat16 and len(x) > 4 and kernel.endswith(("_avx512bf16", "_avx512vbmi")):
            rounding = rounding + 2.0**-8 * (x.double().abs() @ self.exact.abs().t())
        if self.rounded is not None and kernel.endswith(("_avx512bf16", "_amx")):
            rounding = rounding + 2.0**-9 * (x.double().abs() @ self.rounded.t())
        return expected, rounding


class TestGiven(PackedMmTests):
    weight = Weight
    variants = ((THREE, "asymmetric"), (TABLE, "symmetric"))
    shapes = SHAPES
    blocks = (((160, 512, 64), variants[0]), ((88, 3000, 1000), variants[0]))
    bad = (
        (dict(group_size=12), ValueError, "group_size: expected a multiple of 8, or at least k = 64, got 12"),
        (dict(group_size=None), ValueError, "group_size: expected a number for int"),
        (dict(format="int9"), ValueError, "format: expected one of int.*, got int9"),
        (dict(x_as="fp8"), ValueError, "x_as: expected given or int8, got fp8"),
        (dict(w_sum=torch.ones(32)), ValueError, "parts: expected no w_sum"),
    )

    def test_opcheck(self):
        weight = self.sample(32, 64, 32)
        p = weight.parts
        torch.library.opcheck(
            torch.ops.aoq.mm.default,
            (torch.randn(3, 64), [p["packed"], p["scale"], p["zero_point"]], None, 32, p["format"], "given", 32),
        )


class Int8Weight(Int8XWeight):
    op = "mm"

    def __init__(self, n, k, group, variant, scale_dtype=torch.bfloat16, seed=0, qdata=None):
        format, w_mapping, mapping = variant
        parts, exact, addends = parts_of(n, k, group, w_mapping, format, scale_dtype, seed, qdata)
        self.kernels_of, self.unit_bytes = format.ops["int8"], parts["packed"].shape[-1]
        super().__init__(exact, addends, group, mapping, x_as="int8", **parts)


class TestInt8(Int8XTests):
    weight = Int8Weight
    variants = ((THREE, "asymmetric", "asymmetric"), (WIDEST, "symmetric", "symmetric"))
    shapes = SHAPES
    blocks = (((160, 512, 64), variants[0]), ((88, 3000, 1000), variants[0]))

    def test_opcheck(self):
        weight = self.sample(32, 64, 32)
        p = weight.parts
        parts = [p["packed"], p["scale"], p["zero_point"], p["w_sum"]]
        torch.library.opcheck(torch.ops.aoq.mm.default, (torch.randn(3, 64), parts, None, 32, p["format"], "int8", 32))

    def test_extreme_codes(self, isa, variant):
        bits = variant[0].bits
        self.extremes = [from_codes(torch.full((33, 4100), code, dtype=torch.uint8), bits) for code in (0, 2**bits - 1)]
        super().test_extreme_codes(isa, variant)


@pytest.mark.parametrize("format", OTHERS, ids=lambda f: f.name)
def test_every_format(isa, format):
    """As given and as int8, for few rows and many, where groups are whole units and where they are not."""
    for shape in ((33, 200, 128), (17, 40, 8), (48, 320, 40), (20, 70, 32), (5, 7, 7)):
        weights = [Weight(*shape, (format, "asymmetric")), Weight(*shape, (format, "symmetric"))]
        if format in INTEGERS:
            weights[1] = Int8Weight(*shape, (format, "symmetric", "asymmetric"))
        for weight in weights:
            for m in (0, 1, 3, 17, 60):
                for dtype in (torch.bfloat16, torch.float32):
                    x = torch.randn(m, weight.k).to(dtype)
                    check(weight(x), x, weight)
        check(weight.reference(x), x, weight)
    codes = random_codes(33, 200, format, torch.Generator().manual_seed(0))
    packed = format.pack(codes, 200)
    ids = torch.tensor([[0, 32], [7, 16]])
    for got, want in (
        (format.unpack(packed, 33, 200), codes),
        (format.unpack(packed, 33, 200, reference=True), codes),
        (format.rows(packed, ids, 200), codes[ids]),
    ):
        assert torch.equal(got.view(torch.uint8), want.view(torch.uint8))


@pytest.mark.parametrize("format", [f for f in FORMATS.values() if f not in OTHERS], ids=lambda f: f.name)
def test_mm_is_the_formats_own_op(isa, format):
    """Bit for bit, on whatever the format's own test has proven."""
    n, k, x = 33, 96, torch.randn(5, 96).bfloat16()
    w = torch.randn(n, k)
    if format.grouped:
        qdata, scale, zero = aoq.ops.int4_quantize(w, 32)
        operands = (aoq.ops.int4_pack(qdata, k), tile_scale(scale), tile_scale(zero))
        assert torch.equal(
            mm(x, *operands, None, None, n, "int4", group_size=32), aoq.ops.int4_mm(x, *operands, None, n, 32)
        )
        expected = aoq.ops.int8_int4_mm(x, *operands, None, None, n, 32)
        assert torch.equal(mm(x, *operands, None, None, n, "int4", "int8", 32), expected)
        return
    if format.fp8:
        dtype = torch.float8_e5m2 if "e5m2" in format.name else torch.float8_e4m3fn
        codes, scale = aoq.ops.fp8_quantize(w, "row", dtype)
        operands, more = (aoq.ops.int8_pack(codes.view(torch.int8)), tile_scale(scale)), (dtype,)
    else:
        codes, scale, _ = aoq.ops.int8_quantize(w)
        operands, more = (aoq.ops.int8_pack(codes), tile_scale(scale)), ()
        expected = aoq.ops.int8_mm(x, *operands, None, None, n)
        assert torch.equal(mm(x, *operands, None, None, None, n, format.name, "int8"), expected)
    expected = getattr(aoq.ops, format.ops["given"])(x, *operands, None, n, *more)
    assert torch.equal(mm(x, *operands, None, None, None, n, format.name), expected)
    with pytest.raises(ValueError, match="group_size: expected None"):
        mm(x, *operands, None, None, None, n, format.name, group_size=32)


@pytest.mark.parametrize("dtype", (torch.int32, torch.int64))
def test_experts(isa, dtype):
    """Each for its run of rows; empty runs, rows after the last one, biases."""
    weights = [Weight(40, 96, 32, (THREE, "asymmetric"), seed=seed) for seed in range(4)]
    x, bias, ends = torch.randn(19, 96), torch.randn(4, 40), (3, 3, 10, 17)
    names = ("packed", "scale", "zero_point")
    parts = weights[0].parts | {name: torch.stack([w.parts[name] for w in weights]) for name in names}
    offsets = torch.tensor(ends, dtype=dtype)
    out = mm(x, bias=bias, offsets=offsets, **parts)
    for begin, end, weight, b in zip((0, *ends[:-1]), ends, weights, bias, strict=True):
        if end > begin:
            check(out[begin:end], x[begin:end], weight, b)
    assert out[17:].eq(0).all() and mm(x, bias=None, offsets=offsets, **parts).shape == (19, 40)
    for bad, text in (((3, 2, 10, 17), "2 after 3"), ((3, 3, 10, 20), "m = 19, got 20"), ((1, 2, 3), "3 experts")):
        with pytest.raises(ValueError, match=text):
            mm(x, bias=bias, offsets=torch.tensor(bad, dtype=dtype), **parts)


def test_intx_codes(isa):
    """Quantizing, packing and unpacking of every width, beside the references, and what is refused."""
    for bits in range(1, 9):
        for n, k, group in ((17, 40, 8), (33, 200, 128), (5, 7, 7), (1, 1, 1), (16, 96, 4096)):
            for dtype in DTYPES:
                w = (torch.randn(n, k) * torch.rand(n, 1).exp()).to(dtype)
                for mapping in ("symmetric", "asymmetric"):
                    got = intx_quantize(w, bits, group, mapping)
                    assert all(map(torch.equal, got, aoq.ops.intx_quantize_reference(w, bits, group, mapping)))
            if bits < 8:
                packed = intx_pack(got[0], k, bits)
                assert torch.equal(packed, aoq.ops.intx_pack_reference(got[0], k, bits))
                assert torch.equal(aoq.ops.intx_unpack(packed, n, k, bits), got[0])
                assert torch.equal(aoq.ops.intx_unpack_reference(packed, n, k, bits), got[0])
    for bits in (0, 9, -1, 2**40):
        with pytest.raises(ValueError, match="bits: expected"):
            intx_quantize(w, bits, 8)
        with pytest.raises(ValueError, match="bits: expected"):
            intx_pack(got[0], k, bits)
    for k in (0, -1, 2**63 - 1):
        with pytest.raises(ValueError, match=r"k: expected|qdata: expected"):
            intx_pack(got[0], k, 3)


def test_four_bits_are_int4():
    w = torch.randn(33, 72)
    for mapping in ("symmetric", "asymmetric", "hqq"):
        assert all(map(torch.equal, intx_quantize(w, 4, 32, mapping), aoq.ops.int4_quantize(w, 32, mapping)))
    qdata = aoq.ops.int4_quantize(w, 32)[0]
    assert torch.equal(intx_pack(qdata, 72, 4), aoq.ops.int4_pack(qdata, 72))
