"""How far a matmul may be from the exact result: one check for kernels of the CPU, emulated and of a GPU."""

import torch


def check_rounding(out, expected, rounding, bias=None, of="", overflows=False):
    """out: within `rounding`, that of the bias and its own dtype's of `expected`, both fp64 and before the bias.

    of: whose result it is, for the message. overflows: values near the end of out's range do not count.
    """
    if bias is not None:
        expected = expected + bias.double()
        rounding = rounding + 2.0**-23 * (expected.abs() + bias.double().abs())
    assert out.shape == expected.shape
    info = torch.finfo(out.dtype)
    allowed = rounding + info.eps / 2 * (expected.abs() + rounding) + info.tiny
    ratio = (out.double() - expected).abs() / allowed
    if overflows:
        ratio = ratio[expected.abs() < info.max / 2]
    worst = ratio.max().item() if ratio.numel() else 0
    assert worst <= 1, f"{of or out.dtype}: {worst:.2f} times the rounding that the arithmetic allows"
