"""How kernels for weights of few bits share out many rows, and when they are chosen: the constexpr functions."""

import ctypes
import itertools

import plan_library
import pytest
from kernel_args import I64, Args
from plan_library import Shape


class Device(Args):
    _fields_ = (
        ("multiprocessors", ctypes.c_int),
        ("bytes_per_ns", ctypes.c_double),
        ("multiplies_per_ns", ctypes.c_double),
    )


A100 = Device(multiprocessors=108, bytes_per_ns=2039, multiplies_per_ns=1024 * 1.41)
RTX4090 = Device(multiprocessors=128, bytes_per_ns=1008, multiplies_per_ns=512 * 2.5)
H100 = Device(multiprocessors=132, bytes_per_ns=3350, multiplies_per_ns=1280 * 1.75)


@pytest.fixture
def plans():
    return plan_library.plans()


def wide_plan(plans, shape, device):
    out = (ctypes.c_double * 3)()
    plans.wide_plan(ctypes.byref(shape), ctypes.byref(device), out)
    return out[0], int(out[1]), int(out[2])


def test_blocks_cover_everything_once(plans):
    for rows, tokens in itertools.product((1, 3, 64), (1, 3, 4, 5, 9)):
        seen = set()
        for block in range(rows * tokens):
            place = (ctypes.c_int64 * 2)()
            plans.wide_place(block, rows, tokens, place)
            seen.add(tuple(place))
        assert seen == set(itertools.product(range(rows), range(tokens)))


def test_shares_cover_everything_once(plans):
    for count, pieces in itertools.product((1, 7, 64), (1, 2, 3, 12)):
        parts = []
        for index in range(pieces):
            share = (ctypes.c_int64 * 2)()
            plans.wide_share(I64(count), I64(index), I64(pieces), share)
            parts += range(*share)
        assert parts == list(range(count))


@pytest.mark.parametrize("device", (A100, RTX4090, H100), ids=("A100", "RTX4090", "H100"))
def test_which_kernel(plans, device):
    def pays(m, n, k, group, before=0):
        shape = Shape(m=m, n=n, k=k, group=group, w_bits=4, x_bytes=2)
        return plans.wide_pays(ctypes.byref(shape), ctypes.byref(device), before)

    for n, k in ((4096, 4096), (28672, 4096), (8192, 8192), (4096, 14336)):
        assert not any(pays(m, n, k, 128) for m in (1, 8, 16, 32))
        assert all(pays(m, n, k, group) for m in (1024, 8192) for group in (32, 64, 128, k))
        assert not pays(1024, n, k, 8), "sums that are scaled after each 8 columns"


def test_the_grid_fills_the_device_and_no_more(plans):
    shape = Shape(m=64, n=4096, k=4096, group=128, w_bits=4, x_bytes=2)
    _, tokens, split = wide_plan(plans, shape, A100)
    assert tokens == 64 and 32 * split <= 2 * 108 and 32 * split > 64
    shape = Shape(m=8192, n=8192, k=8192, group=128, w_bits=4, x_bytes=2)
    assert wide_plan(plans, shape, A100)[1:] == (128, 1)
    shape = Shape(m=64, n=128, k=64, group=32, w_bits=4, x_bytes=2)
    assert wide_plan(plans, shape, A100)[2] == 1, "one unit of columns"


def test_costs_grow_with_the_work(plans):
    for device in (A100, RTX4090, H100):
        for n, k in ((4096, 4096), (8192, 8192)):
            costs = [
                wide_plan(plans, Shape(m=m, n=n, k=k, group=128, w_bits=4, x_bytes=2), device)[0]
                for m in (64, 256, 1024, 4096)
            ]
            assert costs == sorted(costs)
            # At many rows: the tensor cores' time, and not much more.
            ideal = 4096 * n * k / (device.multiprocessors * device.multiplies_per_ns)
            assert ideal < costs[-1] < 1.6 * ideal


# ---- wgmma's


def wgmma_plan(plans, shape, zero=False, scale_bytes=2, config=-1):
    out = (ctypes.c_double * 6)()
    plans.wgmma_plan(ctypes.byref(shape), ctypes.byref(H100), ctypes.c_bool(zero), scale_bytes, config, out)
    return out[0], *(int(value) for value in out[1:])


def test_wgmma_tiles_cover_everything_once_and_neighbours_share(plans):
    for rows, tokens in itertools.product((1, 3, 16), (1, 7, 8, 9, 20)):
        seen = []
        for index in range(rows * tokens):
            tile = (ctypes.c_int64 * 2)()
            plans.wgmma_tile(I64(index), I64(rows), I64(tokens), tile)
            seen.append(tuple(tile))
        assert set(seen) == set(itertools.product(range(rows), range(tokens))) and len(seen) == len(set(seen))
        assert len({row for row, _ in seen[:8]}) <= -(-8 // min(tokens, 8)), "blocks in turn read the same weights"


def test_wgmma_steps_cover_everything_once(plans):
    for k, split in itertools.product((1, 128, 1000, 8192), (1, 2, 4, 8)):
        steps = []
        for rank in range(split):
            part = (ctypes.c_int64 * 2)()
            plans.wgmma_steps(I64(k), split, rank, part)
            steps += range(*part)
        assert steps == list(range(-(-k // 128)))


def test_every_wgmma_plan_fits_a_multiprocessor(plans):
    for k, group, x_bytes in itertools.product((32, 1000, 8192), (32, 64, 128, 8192), (1, 2)):
        shape = Shape(m=100, n=5000, k=k, group=group, w_bits=4, x_bytes=x_bytes)
        for zero, scale_bytes, config in itertools.product((False, True), (2, 4), range(24)):
            *_, split, stages, shared = wgmma_plan(plans, shape, zero, scale_bytes, config)
            assert shared <= 227 * 1024 and 2 <= stages <= 8
            assert split <= -(-k // 128), "every block has a step"


def test_which_wgmma_plan(plans):
    def shape(m, n, k, group=128):
        return Shape(m=m, n=n, k=k, group=group, w_bits=4, x_bytes=2)

    for n, k in ((4096, 4096), (28672, 4096), (8192, 8192), (4096, 14336)):
        assert not any(plans.wgmma_pays(ctypes.byref(shape(m, n, k)), ctypes.byref(H100), 0) for m in (1, 8, 16, 32))
        assert plans.wgmma_pays(ctypes.byref(shape(64, n, k)), ctypes.byref(H100), 0)
        for m, group in itertools.product((128, 1024, 8192), (32, 64, 128, k)):
            assert plans.wgmma_pays(ctypes.byref(shape(m, n, k, group)), ctypes.byref(H100), 1)
        assert not plans.wgmma_pays(ctypes.byref(shape(1024, n, k, 96)), ctypes.byref(H100), 0)
        costs = [wgmma_plan(plans, shape(m, n, k))[0] for m in (64, 256, 1024, 4096)]
        assert costs == sorted(costs)
        # At many rows: the tensor cores' time at 1.6 GHz, and not much more.
        ideal = 4096 * n * k / (132 * 2048 * 1.6)
        assert ideal < costs[-1] < 1.3 * ideal
        assert wgmma_plan(plans, shape(4096, n, k))[1:4] == (128, 2, 1)
    _, tokens, halves, split, *_ = wgmma_plan(plans, shape(64, 4096, 4096))
    assert tokens == 64 and 66 < 4096 // (128 * halves) * split <= 132, "blocks for every multiprocessor"


# ---- all plans by one number


class Problem(Args):
    _fields_ = (
        ("shape", Shape),
        ("zero", ctypes.c_bool),
        ("scale_bytes", ctypes.c_int),
        ("before", ctypes.c_int),
        ("hopper", ctypes.c_bool),
    )


SKINNY, WIDE, WGMMA = range(3)


def problem(m=64, n=4096, k=4096, group=128, w_bits=4, x_bytes=2, hopper=True):
    shape = Shape(m=m, n=n, k=k, group=group, w_bits=4, x_bytes=x_bytes)
    return Problem(shape=shape, zero=False, scale_bytes=2, before=0, hopper=hopper)


def choice(plans, problem, config, device=H100):
    out = (ctypes.c_int * 4)()
    plans.choice(ctypes.byref(problem), ctypes.byref(device), config, out)
    return tuple(out)


def test_configs_that_a_device_and_operands_have(plans):
    def configs(**fields):
        return plans.configs(ctypes.byref(problem(**fields)))

    assert configs() == 56 and configs(hopper=False) == 32
    assert configs(group=96) == 32, "no group that wgmma's kernels scale after"
    assert configs(group=8) == configs(group=8, hopper=False) == 16
    assert configs(group=4096) == 56, "one group"


@pytest.mark.parametrize("x_bytes", (1, 2))
def test_each_config_is_a_plan_of_its_own(plans, x_bytes):
    wanted = [(SKINNY, 32, warps, 1 << split) for warps in range(4) for split in range(4)]
    wanted += [(WIDE, tokens, 0, split) for tokens in (64, 128) for split in (1, 2, 3, 4, 6, 8, 12, 16)]
    tiles = ((32, 2), (64, 1), (64, 2), (64, 4), (128, 1), (128, 2))
    wanted += [(WGMMA, *tile, 1 << split) for tile in tiles for split in range(4)]
    one = problem(k=8192, x_bytes=x_bytes)
    assert [choice(plans, one, config) for config in range(56)] == wanted
    plans.differs.restype = ctypes.c_bool
    assert [config for config in range(56) if not plans.differs(ctypes.byref(one), config)] == []
    short = problem(k=256, x_bytes=x_bytes)  # two units of columns
    left = [choice(plans, short, config) for config in range(56) if plans.differs(ctypes.byref(short), config)]
    assert len(set(left)) == len(left) == 3 + 4 + 12
    assert all((1 << part if kernels == SKINNY else 1) * split <= 2 for kernels, _, part, split in left)


@pytest.mark.parametrize("hopper", (False, True))
def test_the_choice_is_that_of_the_cheapest_kernels(plans, hopper):
    for m, n, k, group in itertools.product((1, 16, 64, 300, 4096), (4096, 28672), (4096, 14336), (8, 32, 128)):
        one = problem(m, n, k, group, hopper=hopper)
        kernels, *plan = choice(plans, one, -1)
        shape, device = ctypes.byref(one.shape), ctypes.byref(H100)
        if hopper and plans.wgmma_pays(shape, device, 0):
            assert kernels == WGMMA and tuple(plan) == wgmma_plan(plans, one.shape)[1:4]
        elif plans.wide_pays(shape, device, 0):
            assert kernels == WIDE and (plan[0], plan[2]) == wide_plan(plans, one.shape, H100)[1:]
        else:
            assert kernels == SKINNY
        assert any((kernels, *plan) == choice(plans, one, config) for config in range(56))
