"""Which kernels run an op on a device."""

from __future__ import annotations

import torch

from aoq import _C
from aoq.ops.dtypes import dtype_name


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def kernels(op: str, device: torch.device) -> list[str]:
    """The kernels of `op` for tensors on `device`, best first; none where there is no such device or no kernel."""
    if device.type == "cpu":
        return _C.kernels(op)
    if device.type != "cuda" or not torch.cuda.is_available():
        return []
    major, minor = torch.cuda.get_device_capability(device)
    return _C.cuda_kernels(op, 10 * major + minor)


def kernel(op: str, device: torch.device, m: int, x_dtype: torch.dtype) -> str:
    """The kernel that multiplies `m` rows of x of this dtype on the CPU; on CUDA the best of those that may."""
    return _C.kernel(op, m, dtype_name(x_dtype)) if device.type == "cpu" else kernels(op, device)[0]


def why_none(device: torch.device) -> str:
    """What this build lacks of kernels for `device`, in parentheses, or nothing."""
    built = _C.build_info()
    reasons = [built[part].removeprefix("no: ") for part in ("cuda", "cutlass") if built[part].startswith("no: ")]
    return f" ({reasons[0]})" if device.type == "cuda" and reasons else ""
