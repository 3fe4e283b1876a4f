"""The CUDA layout of int4 (csrc/formats/nibbles_cuda.h): CuTe's fragments; matmuls walked as the kernels walk them."""

import subprocess

import pytest
import torch
from nibbles import packed_codes
from toolchain import CXX, ROOT
from torch._subclasses.fake_tensor import FakeTensorMode

from aoq.ops import int4_pack_reference, int4_unpack_reference, int8_pack_reference, int8_unpack_reference, tile_scale
from aoq.ops.bits import from_codes
from aoq.ops.int4_pack import packed_shape
from aoq.ops.int4_unpack import int4_rows
from aoq.ops.int8_unpack import int8_rows

CUDA = torch.device("cuda")
SHAPES = [(16, 64), (1, 1), (17, 65), (33, 6), (48, 576), (20, 1001)]  # n, k


def test_fragments_are_those_of_cute(cute_flags, tmp_path):
    """The same constexpr functions that the kernels use, against mma.sync's and wgmma's operands, 16 and 8 bits."""
    if CXX is None:
        pytest.skip("no C++ compiler")
    source, program = ROOT / "tests/cuda/cute_layouts.cpp", tmp_path / "cute_layouts"
    command = [CXX, "-std=c++17", "-w", *cute_flags, f"-I{ROOT / 'csrc'}", source, "-o", program]
    subprocess.run(command, check=True, timeout=600)
    done = subprocess.run([program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
    # 32 lanes of 8 values in two mma.m16n8k16, 16 in one m16n8k32; 128 of 8 in a wgmma k16, 16 in two k32; one shuffle
    fragments = 2 * 32 * 8 + 32 * 16 + 128 * 8 + 2 * 128 * 16 + 8
    # 32 rows of 192 codes; sums of 128 threads; 128 columns in shared memory, each time with three words that say so
    operands = 32 * 192 + 128 * (16 + 32 + 64) + 128 * 64 + 128 * 128 + 2 * 3
    assert done.stdout == f"{fragments + operands} fragment elements agree\n"


def codes_and_packed(n, k):
    codes = torch.randint(0, 16, (n, k), dtype=torch.uint8)
    padded = torch.nn.functional.pad(codes, (0, k % 2))
    qdata = padded[:, 0::2] | padded[:, 1::2] << 4
    return codes, qdata, int4_pack_reference(qdata, k, CUDA)


@pytest.mark.parametrize("n, k", SHAPES)
def test_rows_of_a_packed_weight(n, k):
    codes, qdata, packed = codes_and_packed(n, k)
    assert torch.equal(qdata, from_codes(codes, 4)) and torch.equal(packed, packed_codes(codes, 4))
    assert packed.shape == packed_shape(n, k, CUDA)
    assert torch.equal(int4_unpack_reference(packed, n, k), qdata)
    ids = torch.randint(0, n, (2, 3))
    assert torch.equal(int4_rows(packed, ids, k), qdata[ids])


@pytest.mark.parametrize("n, k", SHAPES)
def test_int8_rows_of_a_packed_weight(n, k):
    qdata = torch.randint(-128, 128, (n, k), dtype=torch.int8)
    packed = int8_pack_reference(qdata, CUDA)
    assert packed.dtype == torch.int8 and packed.shape[1] == 16 and packed.shape[2] % 16 == 0
    assert torch.equal(int8_unpack_reference(packed, n, k), qdata)
    ids = torch.randint(0, n, (2, 3))
    assert torch.equal(int8_rows(packed, ids, k), qdata[ids])


def words_of(packed):
    """The 32-bit words that lanes load: [tiles of n, tiles of k, lane, word], as int64."""
    return packed.view(torch.int32).view(*packed.shape[:2], 32, 4).long() & 0xFFFFFFFF


def a_fragment(registers):
    """mma's operand A from registers [..., lane, a, element], by the PTX manual: [..., row, k].

    Element e of register a of lane 4g + t is row g + 8 (a % 2), k = (8 if a > 1 else 0) + 2t + e of m16n8k16's 16-bit
    elements (e < 2), and for 8-bit ones (e < 4) k = (16 if a > 1 else 0) + 4t + e of m16n8k32's.
    """
    *lead, lanes, count, elements = registers.shape
    assert (lanes, count) == (32, 4)
    grid = registers.view(*lead, 8, 4, 2, 2, elements)  # g, t, a // 2, a % 2, e
    return grid.movedim((-2, -5, -3, -4, -1), (-5, -4, -3, -2, -1)).reshape(*lead, 16, 8 * elements)


def padded_activations(x, tiles_k):
    return torch.nn.functional.pad(x, (0, 64 * tiles_k - x.shape[1]))


@pytest.mark.parametrize("n, k, group", [(16, 64, 32), (40, 200, 64), (17, 1001, 128), (5, 24, 8), (33, 576, 576)])
def test_16_bit_walk_multiplies(n, k, group):
    """Words to pairs (word >> 4a) & 0x000f000f, k16 atom by atom, group scales and zero points on the sums, in fp64."""
    codes, _, packed = codes_and_packed(n, k)
    groups = -(-k // group)
    scale, zero = torch.rand(n, groups).double() + 0.5, torch.rand(n, groups).double() * 15
    x = torch.randn(3, k).double()
    wanted = (
        x @ ((codes.double() - zero.repeat_interleave(group, 1)[:, :k]) * scale.repeat_interleave(group, 1)[:, :k]).T
    )

    words = words_of(packed)
    pairs = torch.stack([words >> 4 * a & 0x000F000F for a in range(4)], -1)  # [N, T, lane, word, a]
    halves = torch.stack([pairs & 0xFFFF, pairs >> 16], -1).double()
    atoms = a_fragment(halves.transpose(2, 3)).flatten(1, 2)  # [N, k16, row, k]
    x_atoms = padded_activations(x, packed.shape[1]).unflatten(1, (-1, 16))  # [m, k16, k]
    tiled = [tile_scale(part) for part in (scale, zero)]  # [N, G, 16]
    out = torch.zeros(len(x), 16 * len(packed)).double()
    for g in range(groups):
        # Columns of other groups are 0 in x: kernels split a group's atoms where group is a multiple of 16.
        inside = torch.zeros_like(x_atoms)
        flat = inside.view(len(x), -1)
        flat[:, g * group : min(k, (g + 1) * group)] = x[:, g * group : (g + 1) * group]
        sums = torch.einsum("nark,mak->mnr", atoms, inside)
        x_sum = flat.sum(1)[:, None, None]
        out += ((sums - tiled[1][:, g] * x_sum) * tiled[0][:, g]).flatten(1)
    torch.testing.assert_close(out[:, :n], wanted, rtol=1e-12, atol=1e-10)
    assert not out[:, n:].any(), "rows beyond n have scale 0"


@pytest.mark.parametrize("n, k", [(16, 64), (40, 200), (17, 1001)])
def test_8_bit_walk_multiplies(n, k):
    """word & 0x0f0f0f0f and (word >> 4) & 0x0f0f0f0f of two words are A of m16n8k32, for activations in their order."""
    codes, _, packed = codes_and_packed(n, k)
    x = torch.randint(-128, 128, (3, k))
    words = words_of(packed).unflatten(3, (2, 2))  # [N, T, lane, atom pair, word]
    registers = torch.stack([words & 0x0F0F0F0F, words >> 4 & 0x0F0F0F0F], -1).flatten(-2)  # a0, a1 | a2, a3
    elements = torch.stack([registers >> 8 * b & 0xFF for b in range(4)], -1)
    atoms = a_fragment(elements.transpose(2, 3)).flatten(1, 2)  # [N, k32, row, position]
    # position 4t + b of each sixteen holds k = 2t + b // 2 + 8 (b % 2)
    order = torch.tensor([2 * (p // 4) + p % 4 // 2 + 8 * (p % 2) for p in range(16)])
    assert sorted(order.tolist()) == list(range(16))
    permuted = padded_activations(x, packed.shape[1]).unflatten(1, (-1, 16))[..., order].view(len(x), -1, 32)
    out = torch.einsum("nark,mak->mnr", atoms.double(), permuted.double()).flatten(1)[:, :n]
    assert torch.equal(out.long(), x @ codes.T.long())


def test_fake_kernels_know_the_device():
    with FakeTensorMode():
        packed = torch.ops.aoq.int4_pack(torch.empty(20, 50, dtype=torch.uint8, device="cuda"), 100)
        assert packed.shape == (2, 2, 512) and packed.is_cuda
        assert torch.ops.aoq.int4_unpack(packed, 20, 100).shape == (20, 50)
        x, scale = torch.empty(3, 100, device="cuda"), torch.empty(2, 4, 16, device="cuda")
        assert torch.ops.aoq.int4_mm(x, packed, scale, None, None, 20, 32).shape == (3, 20)
        with pytest.raises(ValueError, match=r"packed: expected shape \[2, 1, 512\], got \[2, 2, 512\]"):
            torch.ops.aoq.int4_mm(torch.empty(3, 64, device="cuda"), packed, scale, None, None, 20, 32)
        int8 = torch.ops.aoq.int8_pack(torch.empty(20, 50, dtype=torch.int8, device="cuda"))
        assert (int8.shape, int8.dtype) == ((2, 16, 64), torch.int8)
