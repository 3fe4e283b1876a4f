"""Which kernels int8_weight_mm and fp8_weight_mm run on CUDA, and how: the constexpr functions themselves."""

import ctypes
import itertools

import plan_library
import pytest
from plan_library import Shape
from test_nibble_mm_plan import A100, H100, RTX4090

SIZES = ((4096, 4096), (28672, 4096), (8192, 8192), (4096, 14336))


@pytest.fixture
def plans():
    return plan_library.plans()


def choice(plans, m, n, k, device=A100, config=-1):
    """wide, tokens, log_warps_k, split, bytes of shared memory; cost."""
    out = (ctypes.c_double * 6)()
    shape = Shape(m=m, n=n, k=k, group=k, w_bits=8, x_bytes=2)
    plans.weight_choice(ctypes.byref(shape), ctypes.byref(device), config, out)
    return *(int(value) for value in out[:5]), out[5]


def test_each_config_is_a_plan_of_its_own(plans):
    wanted = [(0, 32, warps, 1 << split) for warps in range(4) for split in range(4)]
    wanted += [(1, tokens, 0, split) for tokens in (64, 128) for split in (1, 2, 3, 4, 6, 8, 12, 16)]
    assert plans.weight_configs() == len(wanted)
    assert [choice(plans, 64, 4096, 8192, config=config)[:4] for config in range(32)] == wanted
    short = Shape(m=64, n=4096, k=256, group=256, w_bits=8, x_bytes=2)  # two units of columns
    left = [plan for config, plan in enumerate(wanted) if plans.weight_differs(ctypes.byref(short), config)]
    assert len(left) == 3 + 4 and all(split << warps <= 2 for _, _, warps, split in left)


def test_every_plan_fits_two_blocks_or_one_of_128_tokens(plans):
    """100 KB a multiprocessor, 1 KB of them a block's own: sm_86, sm_89."""
    for m, k, config in itertools.product((1, 7, 16, 33), (7, 1000, 16384), range(32)):
        wide, tokens, _, _, shared, _ = choice(plans, m, 4096, k, config=config)
        blocks = 1 if wide and tokens == 128 else 2
        assert blocks * (shared + 1024) <= 100 * 1024


@pytest.mark.parametrize("device", (A100, RTX4090, H100), ids=("A100", "RTX4090", "H100"))
def test_which_kernel(plans, device):
    for n, k in SIZES:
        assert not any(choice(plans, m, n, k, device)[0] for m in (1, 8, 16, 32))
        assert all(choice(plans, m, n, k, device)[0] for m in (128, 1024, 8192))
        assert choice(plans, 4096, n, k, device)[1] == 128


@pytest.mark.parametrize("device", (A100, RTX4090, H100), ids=("A100", "RTX4090", "H100"))
def test_costs_are_near_what_binds(plans, device):
    for n, k in SIZES:
        costs = [choice(plans, m, n, k, device)[5] for m in (1, 16, 64, 256, 1024, 4096)]
        assert costs == sorted(costs)
        reading, multiplying = n * k / device.bytes_per_ns, n * k / (device.multiprocessors * device.multiplies_per_ns)
        assert reading < costs[0] < 1.3 * reading + 4000
        assert 4096 * multiplying < costs[-1] < 1.6 * 4096 * multiplying


def test_the_grid_fills_the_device_and_no_more(plans):
    _, tokens, log_warps_k, split, *_ = choice(plans, 1, 4096, 4096)
    blocks = 4096 // (512 >> log_warps_k) * split
    assert tokens == 8 and 108 <= blocks <= 2 * 108
    wide, tokens, _, split, *_ = choice(plans, 64, 4096, 4096)
    assert not wide or (tokens == 64 and 64 < 32 * split <= 2 * 108)
    assert choice(plans, 64, 128, 64)[3] == 1, "one unit of columns"
