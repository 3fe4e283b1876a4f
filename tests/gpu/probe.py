"""One launch of each family of kernels, beside the CPU's result: python tests/gpu/probe.py NAME [--size 8192].

Without a name it lists them. Each is for a process of its own: a launch that faults or hangs takes the process's device
with it. The last line that is printed says what was found.
"""

import argparse
import ctypes
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

# Family: op, the newest architecture it may use, config, rows of x.
FAMILIES = {
    "int4_pack": ("int4_pack", "", None, 5),
    "int8_quantize": ("int8_quantize", "", None, 5),
    "int4_mm_skinny_sm80": ("int4_mm", "sm80", 0, 1),
    "int4_mm_wide_sm80": ("int4_mm", "sm80", 16, 70),
    "int8_weight_mm_sm80": ("int8_weight_mm", "sm80", 0, 1),
    "int8_mm_cutlass_sm80": ("int8_mm", "sm80", 0, 70),
    "int4_mm_skinny_sm90a": ("int4_mm", "sm90a", 1, 1),  # a cluster of two
    "int4_mm_wgmma": ("int4_mm", "sm90a", 32, 70),
    "int8_mm_cutlass_sm90a": ("int8_mm", "sm90a", 0, 70),
}


def describe() -> str:
    import torch

    import aoq

    driver = ctypes.c_int()
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(driver))
    properties = torch.cuda.get_device_properties(0)
    kernels = aoq._C.build_info()["cuda"]
    return f"{properties}; driver's CUDA {driver.value}, torch's {torch.version.cuda}, aoq's {kernels}"


# ---- how many clusters run at a time, which cost models take for as many as multiprocessors allow: asked of the
# driver, for a kernel that does nothing but has a block's shared memory

EMPTY = b".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry empty() { ret; }\n\0"
SHARED = 120 * 1024  # more than half: one block a multiprocessor, as registers make it of the real kernels
SHARED_LIMIT, CLUSTER_DIMENSION = 8, 4  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, CU_LAUNCH_ATTRIBUTE_...


class Attribute(ctypes.Structure):
    """CUlaunchAttribute."""

    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_char * 4), ("value", ctypes.c_uint * 16))


class Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        *((f"{of}{axis}", ctypes.c_uint) for of in ("gridDim", "blockDim") for axis in "XYZ"),
        *(("sharedMemBytes", ctypes.c_uint), ("hStream", ctypes.c_void_p)),
        *(("attrs", ctypes.POINTER(Attribute)), ("numAttrs", ctypes.c_uint)),
    )


def clusters() -> str:
    import torch

    if torch.cuda.get_device_capability() < (9, 0):
        return "no clusters before compute capability 9.0"
    torch.zeros(1, device="cuda")  # makes a context
    cuda = ctypes.CDLL("libcuda.so.1")

    def call(name, *arguments):
        error = getattr(cuda, name)(*arguments)
        if error:
            raise RuntimeError(f"{name}: CUDA error {error}")

    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    call("cuModuleLoadData", ctypes.byref(module), EMPTY)
    call("cuModuleGetFunction", ctypes.byref(function), module, b"empty")
    call("cuFuncSetAttribute", function, SHARED_LIMIT, SHARED)
    fitting = {}
    for blocks in (1, 2, 4, 8):
        attribute = Attribute(id=CLUSTER_DIMENSION)
        attribute.value[:3] = (blocks, 1, 1)
        config = Config(blocks, 1, 1, 256, 1, 1, SHARED, None, ctypes.pointer(attribute), 1)
        count = ctypes.c_int()
        call("cuOccupancyMaxActiveClusters", ctypes.byref(count), function, ctypes.byref(config))
        fitting[blocks] = blocks * count.value
    multiprocessors = torch.cuda.get_device_properties(0).multi_processor_count
    text = ", ".join(f"{count} in clusters of {blocks}" for blocks, count in fitting.items())
    return f"blocks that run at a time on {multiprocessors} multiprocessors: {text}"


def launch(name: str, size: int) -> str:
    import torch
    from operands import DEVICE, operands, randn, run, weight

    from aoq import _C

    op, sm, config, m = FAMILIES[name]
    last = () if config is None else (config,)

    def results(device, last):
        if size and op == "int4_mm":
            rows = 1 if m == 1 else 1024
            arguments = (randn(rows, size, device=device), *weight(size, size, 128, device), None, size, 128)
        else:
            arguments = operands(op, device, m)
        schema = getattr(torch.ops.aoq, op).default._schema.arguments
        missing = [argument.default_value for argument in schema[len(arguments) : len(schema) - len(last)]]
        return run(op, arguments=(*arguments, *missing, *last))

    _C.set_sm(sm)
    got = results(DEVICE, last if DEVICE == "cuda" else ())
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    kernel = _C.last_kernel()
    if op == "int4_pack":  # another layout than the CPU's
        arguments = operands(op, DEVICE)
        wanted, got = [arguments[0]], run("int4_unpack", arguments=(got[0], len(arguments[0]), arguments[1]))
    else:
        wanted = results("cpu", ())
    for a, b in zip(got, wanted, strict=True):
        if not a.numel():
            continue
        a, b = a.float().cpu(), b.float().cpu()
        error = (a - b).abs().max().item() / max(b.abs().max().item(), 1e-30)
        if not error <= 0.01:  # NaN too
            raise SystemExit(f"{kernel}: {error:.3g} of the largest value from the CPU's result")
    return f"{kernel}: as the CPU's"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=["device", "clusters", *FAMILIES])
    parser.add_argument("--size", type=int, default=0, help="int4_mm's n and k, for a profiler")
    args = parser.parse_args()
    if args.name is None:
        print(*("device", "clusters", *FAMILIES), sep="\n")
    elif args.name in FAMILIES:
        print(launch(args.name, args.size), flush=True)
    else:
        print({"device": describe, "clusters": clusters}[args.name](), flush=True)


if __name__ == "__main__":
    main()
