"""What this machine's CPU is fast at, as far as the choice of a dtype depends on it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Collection
from pathlib import Path

import torch

from aoq.ops.dtypes import dtype_name

logger = logging.getLogger("aoq")

# Instructions with which torch multiplies bf16 at least as fast as fp32: as Linux names them, of x86 and then of Arm.
# Without one of them a bf16 matmul is torch's own loop, which takes some six times as long as fp32 through oneDNN.
FAST_BF16 = ("avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16", "svebf16")


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """What the CPU can do, in Linux's words; nothing where there is no Linux to ask."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    features = frozenset(flags.partition(":")[2].split())
    # Linux does not list avx_ne_convert; without AVX-512, oneDNN takes bf16 with it alone.
    asks = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    if features and "avx512f" not in features and asks is not None and asks():
        features |= {"avx_ne_convert"}
    return features


def fast_bf16(features: Collection[str] | None = None) -> bool:
    """Whether torch multiplies bf16 as fast as fp32 on a CPU with `features`, by default this one's.

    A CPU about which nothing is known is taken for one that does: then every dtype stays as it is.
    """
    if features is None:
        features = cpu_features()
    return not features or any(name in features for name in FAST_BF16)


def auto_dtype(stored: torch.dtype, features: Collection[str] | None = None) -> torch.dtype:
    """The dtype to compute in, on a CPU with `features`, with what is stored as `stored`: fp32 where bf16 is slow."""
    return torch.float32 if stored is torch.bfloat16 and not fast_bf16(features) else stored


@functools.cache
def say_choice(chosen: torch.dtype, stored: torch.dtype) -> None:
    """Says in one line, once in a process, that `chosen` takes the place of `stored`."""
    logger.warning(
        "this CPU has no fast %s: what is not quantized is %s, unless another dtype is asked for",
        dtype_name(stored),
        dtype_name(chosen),
    )
