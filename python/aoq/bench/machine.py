"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

import aoq
from aoq import _C

# Those flags of /proc/cpuinfo that matter to a matmul.
_FLAGS = ("fma", "f16c", "avx2", "avx_vnni", "avx512", "amx", "asimd", "sve", "i8mm", "bf16")


def describe(threads: int, device: str = "cpu") -> dict[str, Any]:
    """The machine and the software, as JSON."""
    return {
        "cpu": cpu_name(),
        **({"gpu": torch.cuda.get_device_name()} if device == "cuda" else {}),
        "flags": [flag for flag in _cpuinfo("flags", "Features").split() if flag.startswith(_FLAGS)],
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "caches": caches(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "scheduling": _scheduling(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "aoq": {"version": aoq.__version__, "isa": _C.isa(), "isas": _C.isas(), **_C.build_info()},
    }


def cpu_name() -> str:
    return _cpuinfo("model name", "Model") or platform.processor() or platform.machine()


def caches() -> dict[str, int]:
    """Bytes of each cache that the first core has."""
    sizes = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        suffix = {"Data": "d", "Instruction": "i"}.get(kind, "")
        sizes[f"L{level}{suffix}"] = int(size.rstrip("KM")) * (1 << (20 if size.endswith("M") else 10))
    return sizes


def cold_bytes() -> int:
    """More weights than this, read in turn, are read from memory: 300 MB, or four times the largest cache."""
    return max(300_000_000, 4 * max(caches().values(), default=0))


def _cpuinfo(*names: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.split(":")[0].strip() in names), "")


def _scheduling() -> str:
    policy = os.sched_getscheduler(0)
    names = {os.SCHED_FIFO: "real-time (FIFO)", os.SCHED_RR: "real-time (round robin)", os.SCHED_BATCH: "batch"}
    return names.get(policy, "normal")
