"""Grouped matmuls on CUDA, thread by thread: the list of tiles of experts' rows, and the kernels that read it."""

import math

import pytest
import test_nibble_mm_kernels as nibble
import test_weight_mm_kernels as weight_mm
import torch
from kernel_args import CodesAsBf16, ExpertRows, NibbleSkinny, NibbleWide, WeightMmSkinny, WeightMmWide, WidePlan
from nibbles import Weight
from plan_library import Shape, skinny_plan, skinny_workspace, weight_plan, wide_workspace

from aoq.ops import int8_pack_reference, tile_scale

BF16, FP32 = torch.bfloat16, torch.float32


def ascending(offsets, m):
    """What the device takes offsets for."""
    ends = []
    for offset in offsets:
        ends.append(max(min(max(offset, 0), m), ends[-1] if ends else 0))
    return ends


def most_tiles(m, experts, tokens):
    parts = min(experts + 1, m)
    return parts + (m - parts) // tokens


def tiles_of(ends, m, tokens, planes=1):
    """The list, as its header says: (first row, rows, expert) of each tile, expert after expert; the rest is -1's."""
    tiles = []
    for expert, (begin, end) in enumerate(zip((0, *ends), (*ends, m), strict=True)):
        owner = expert if expert < len(ends) else -1
        tiles += [(row, min(tokens, end - row), owner) for row in range(begin, end, tokens)]
    tiles += [(0, 0, 0)] * (most_tiles(m, len(ends), tokens) - len(tiles))
    return [(plane * m * (count > 0) + first, count, owner) for plane in range(planes) for first, count, owner in tiles]


def as_tensor(tiles):
    return torch.tensor([(first, 0, count, owner) for first, count, owner in tiles], dtype=torch.int32)


LISTS = [  # offsets, m, rows of a tile, planes
    ((3, 3, 10, 17), 19, 4, 1),
    ((0, 0, 0), 5, 8, 1),
    ((8,), 8, 8, 3),
    ((2, 9, 4, 30, -1), 20, 8, 1),  # descend, and go beyond m
    (tuple(range(0, 900, 3)), 950, 2, 1),  # more experts than threads
    ((1,) * 255 + (7,), 7, 64, 3),
    ((1,) * 256 + (300,), 300, 64, 1),
]


@pytest.mark.parametrize("dtype", (torch.int32, torch.int64), ids=str)
@pytest.mark.parametrize("case", LISTS, ids=lambda case: f"{len(case[0])}-experts-{case[1]}")
def test_tiles_are_listed(simt_kernel, case, dtype):
    offsets, m, tokens, planes = case
    most, expected = most_tiles(m, len(offsets), tokens), ascending(offsets, m)
    tiles = torch.full((planes * most, 4), 0x5A5A5A5A, dtype=torch.int32)
    ends = torch.full((len(offsets),), -9, dtype=torch.int32)
    rows = dict(offsets=torch.tensor(offsets, dtype=dtype), offsets_int64=dtype == torch.int64, experts=len(offsets))
    simt_kernel("expert_tiles_sm80", ExpertRows)(
        **rows, m=m, tokens=tokens, planes=planes, most=most, tiles=tiles, ends=ends
    )
    assert ends.tolist() == expected
    assert torch.equal(tiles, as_tensor(tiles_of(expected, m, tokens, planes)))


def test_int8_codes_are_widened_exactly(simt_kernel):
    codes = torch.arange(-128, 128).to(torch.int8).view(4, 64)
    x = torch.full((4, 64), math.nan, dtype=BF16)
    simt_kernel("codes_as_bf16_sm80", CodesAsBf16)(m=4, k=50, codes=codes, codes_stride=64, x=x, pitch=64)
    assert torch.equal(x[:, :50].float(), codes[:, :50].float()) and x[:, 50:].eq(0).all()


OFFSETS, M = (3, 3, 3 + 70, 3 + 70 + 9), 90  # an expert without rows, one of several tiles, 8 rows that are no one's
N, K, GROUP = 40, 200, 64


def listed(tokens, planes=1):
    """What PackedMm has of these offsets."""
    tiles, ends = as_tensor(tiles_of(OFFSETS, M, tokens, planes)), torch.tensor(OFFSETS, dtype=torch.int32)
    count = most_tiles(M, len(OFFSETS), tokens)
    return dict(expert_tiles=tiles, expert_tile_count=count, expert_ends=ends, experts=len(OFFSETS))


def each_expert(out, x, bias, check):
    """check(expert, its rows of out and x, its bias), and zeros after the last."""
    for expert, (begin, end) in enumerate(zip((0, *OFFSETS), OFFSETS, strict=False)):
        if end > begin:
            check(expert, out[begin:end], x[begin:end], None if bias is None else bias[expert])
    assert out[OFFSETS[-1] :].eq(0).all()


class Stacked:
    """Weights of all experts, as a kernel is given them."""

    def __init__(self, name, mapping):
        self.each = [Weight(name, N, K, GROUP, mapping, BF16, seed) for seed in range(len(OFFSETS))]
        first = self.each[0]
        self.n, self.k, self.group, self.bits, self.name = N, K, GROUP, first.bits, name
        self.packed = torch.stack([one.packed for one in self.each])
        self.scale = torch.stack([one.scale for one in self.each])
        zero = first.zero_point
        self.zero_point = None if zero is None else torch.stack([one.zero_point for one in self.each])


@pytest.mark.parametrize("plan", ("few", "few, k shared", "many"))
@pytest.mark.parametrize("dtype", (BF16, FP32), ids=str)
@pytest.mark.parametrize("name, mapping", [("int4", "asymmetric"), ("int3", "symmetric")])
def test_weights_of_few_bits(simt_kernel, name, mapping, dtype, plan):
    weights, f32 = Stacked(name, mapping), dtype == FP32
    x, bias, planes = torch.randn(M, K).to(dtype), torch.randn(len(OFFSETS), N).to(dtype), 3 if f32 else 1
    shape = Shape(m=M, n=N, k=K, group=GROUP, w_bits=weights.bits, x_bytes=2)
    if plan == "many":
        made, tokens = WidePlan(tokens=64, split=1), 64
        floats = wide_workspace(shape, 1, planes, f32, mapping == "asymmetric")
        kernel = simt_kernel(f"{name}_mm_wide_sm80", NibbleWide)
    else:
        made = skinny_plan(shape, 2 if "shared" in plan else 0, 0)
        tokens, floats = made.tokens, skinny_workspace(Shape(m=M, n=N, k=K), 0, False, f32)
        kernel = simt_kernel(f"{name}_mm_sm80", NibbleSkinny)
    out = nibble.multiply(kernel, x, weights, bias, made, torch.full((floats,), math.nan), listed(tokens, planes))
    each_expert(out, x, bias, lambda i, got, rows, b: nibble.check(got, rows, weights.each[i], b))


@pytest.mark.parametrize("plan", ("few", "many"))
@pytest.mark.parametrize("x_as", ("given", "int8"))
@pytest.mark.parametrize("dtype", (torch.int8, torch.float8_e5m2), ids=str)
def test_weights_of_8_bits(simt_kernel, dtype, x_as, plan):
    """An int8 x comes as its codes in bf16, with scales and zero points of its rows."""
    if x_as == "int8" and dtype != torch.int8:
        pytest.skip("fp8 weights have no int8 x")
    experts = [weight_mm.weight(N + 16 * seed, K, dtype, FP32) for seed in range(len(OFFSETS))]
    experts = [(codes[-N:], scale[-N:]) for codes, scale in experts]  # other codes of each
    packed = torch.stack([int8_pack_reference(codes.view(torch.int8), weight_mm.CUDA) for codes, _ in experts])
    scales = torch.stack([tile_scale(scale) for _, scale in experts])
    bias, x, more = torch.randn(len(OFFSETS), N).bfloat16(), torch.randn(M, K).bfloat16(), {}
    if x_as == "int8":
        x = torch.randint(-128, 128, (M, K)).bfloat16()
        x_scale, x_zero = torch.rand(M) + 0.1, torch.randint(-9, 9, (M,)).float()
        w_sum = torch.stack([(codes.double() * scale.double()).sum(1).float() for codes, scale in experts])
        more = dict(row_scale=x_scale, row_zero=x_zero, w_sum=w_sum)
    shape = Shape(m=M, n=N, k=K, group=K, w_bits=8, x_bytes=2)
    if plan == "many":
        which, struct, made, tokens = "wide_", WeightMmWide, WidePlan(tokens=64, split=1), 64
        floats = wide_workspace(shape, 1, 1, False, False)
    else:
        which, struct, made, floats = "", WeightMmSkinny, weight_plan(shape, 1, 0), 0
        tokens = made.tokens
    rest = dict(packed=packed.contiguous(), experts=listed(tokens), **more)
    out = weight_mm.multiply(simt_kernel, which, struct, x, experts[0][0], scales, bias, made, floats, **rest)

    def check(i, got, rows, b):
        codes, scale = experts[i]
        if x_as == "given":
            return weight_mm.check(got, rows, codes, scale, b)
        begin = (0, *OFFSETS)[i]
        of = slice(begin, begin + len(rows))
        w = codes.double() * scale.double()
        expected = x_scale[of, None].double() * (rows.double() @ w.t() - x_zero[of, None].double() * w.sum(1))
        rounding = x_scale[of, None] * (rows.double().abs() @ w.abs().t() + x_zero[of, None].abs() * w.abs().sum(1))
        weight_mm.check_rounding(got, expected, (4 * math.sqrt(K) + 16) * 2.0**-24 * rounding, b)

    each_expert(out, x, bias, check)
