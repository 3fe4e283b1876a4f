"""int8_mm and fp8_mm on CUDA against fp64, by every kernel of the device, with the arithmetic's own tolerance."""

import pytest
import torch
from operands import DEVICE, capability, fp8_weight, int8_weight, randn, registered

from aoq import _C
from aoq.ops import fp8_quantize, int8_quantize, int8_unpack_reference, untile_scale
from rounding import check_rounding

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
AWKWARD = [(64, 256), (17, 40), (33, 200), (5, 7), (1, 1), (40, 1000), (136, 576)]  # n, k
MODELS = [(4096, 4096), (28672, 4096), (4096, 14336), (8192, 8192), (50257, 768)]
ROWS = (1, 2, 3, 8, 16, 17, 33, 64, 65, 130, 300)


def need(op):
    if not registered(op) or not _C.cuda_kernels(op, capability()):
        pytest.skip(f"{op} has no kernel for this device")


def check(out, products, magnitude, x_scale, shift, scale, bias, fp8_k=0):
    """products: the exact sums of codes. magnitude: the root of the sums of squared products of codes.

    fp8_k: columns whose products a tensor core adds in steps of 32, cutting each partial sum off after 14 bits. A
    partial sum of random operands is within 4 magnitudes, save for one in 16000; the bound has that in each step.
    """
    x_scale, scale = x_scale.double(), scale.double()
    expected = x_scale * (products * scale - shift)
    rounding = 2.0**-22 * x_scale * (products.abs() * scale + abs(shift))
    rounding = rounding + (fp8_k / 32 + 1 if fp8_k else 0) * 2.0**-13 * 4 * magnitude * x_scale * scale
    check_rounding(out, expected, rounding, bias, _C.last_kernel())


def poisoned(x, n):
    """The next allocation of out's size is likely this memory."""
    poison = torch.full((x.shape[0], n), float("nan"), dtype=x.dtype, device=x.device)
    del poison


def check_int8(x, parts, n, bias=None, config=-1):
    packed, scale, w_sum = parts
    codes, x_scale, x_zero = int8_quantize(x, "symmetric" if w_sum is None else "asymmetric", torch.float32)
    w = int8_unpack_reference(packed, n, x.shape[1]).double()
    products = codes.double() @ w.t()
    shift = 0 if w_sum is None else x_zero.double() * w_sum.double()
    poisoned(x, n)
    out = torch.ops.aoq.int8_mm(x, packed, scale, w_sum, bias, n, config)
    check(out, products, products, x_scale, shift, untile_scale(scale, n).t(), bias)


def check_fp8(x, parts, n, bias=None, w_dtype=E4M3, x_dtype=E4M3, granularity="row", config=-1):
    packed, scale = parts
    k = x.shape[1]
    codes, x_scale = fp8_quantize(x, granularity, x_dtype)
    w = int8_unpack_reference(packed, n, k).view(w_dtype).double()
    products = codes.double() @ w.t()
    magnitude = (codes.double().square() @ w.square().t()).sqrt()
    poisoned(x, n)
    out = torch.ops.aoq.fp8_mm(x, packed, scale, bias, n, w_dtype, x_dtype, granularity, None, None, config)
    check(out, products, magnitude, x_scale, 0, untile_scale(scale, n).t(), bias, fp8_k=k)


@pytest.mark.parametrize("asymmetric", (False, True))
@pytest.mark.parametrize("shape", AWKWARD, ids=str)
def test_int8_awkward_shapes(sm, shape, asymmetric):
    need("int8_mm")
    parts = int8_weight(*shape, DEVICE, asymmetric)
    for dtype in DTYPES:
        for m in ROWS:
            x = randn(m, shape[1], dtype=dtype, seed=m) + (1 if asymmetric else 0)
            check_int8(x, parts, shape[0], randn(shape[0], seed=1) if m % 2 else None)


@pytest.mark.parametrize("granularity", ("row", "tensor"))
@pytest.mark.parametrize("w_dtype", (E4M3, E5M2), ids=str)
@pytest.mark.parametrize("shape", AWKWARD, ids=str)
def test_fp8_awkward_shapes(sm, shape, w_dtype, granularity):
    need("fp8_mm")
    parts = fp8_weight(*shape, DEVICE, w_dtype)
    for dtype in DTYPES:
        for m in ROWS:
            bias = randn(shape[0], seed=1) if m % 2 else None
            x = randn(m, shape[1], dtype=dtype, seed=m)
            check_fp8(x, parts, shape[0], bias, w_dtype, (E4M3, E5M2)[m % 2], granularity)


@pytest.mark.parametrize("n, k", MODELS)
def test_shapes_of_models(sm, n, k):
    for op, weight, check_op in (("int8_mm", int8_weight, check_int8), ("fp8_mm", fp8_weight, check_fp8)):
        if not _C.cuda_kernels(op, capability()):
            continue
        parts = weight(n, k, DEVICE)
        for m in (1, 16, 64, 256, 1000):
            check_op(randn(m, k, seed=m), parts, n)


def takes(name, dtype, n):
    return not name.endswith("sm90a") or (dtype != torch.float32 and n % 8 == 0)


@pytest.mark.parametrize("op", ("int8_mm", "fp8_mm"))
def test_every_kernel_that_may_be_chosen(op):
    """`config` picks one: each gives the right values, at sizes that it would not be chosen for too."""
    need(op)
    for config, name in enumerate(_C.cuda_kernels(op, capability())):
        codes = [E5M2 if part == "e5m2" else E4M3 for part in name.split("_") if part in ("e4m3", "e5m2")]
        x_dtype, w_dtype = codes or (E4M3, E4M3)
        for n, k in ((264, 640), (1000, 4096), (37, 100)):
            for dtype in DTYPES:
                for m in (1, 15, 70, 257):
                    x, bias = randn(m, k, dtype=dtype, seed=m), randn(n, seed=1)
                    if op == "int8_mm":
                        arguments = (x, int8_weight(n, k, DEVICE, m == 70), n, bias)
                        run = lambda a=arguments, c=config: check_int8(*a, c)  # noqa: E731
                    else:
                        arguments = (x, fp8_weight(n, k, DEVICE, w_dtype), n, bias, w_dtype, x_dtype, "row")
                        run = lambda a=arguments, c=config: check_fp8(*a, c)  # noqa: E731
                    if takes(name, dtype, n):
                        run()
                        assert _C.last_kernel() == name
                    else:
                        with pytest.raises(RuntimeError, match=r"config: .* does not take these operands"):
                            run()


@pytest.mark.parametrize("m, n, k", [(520, 4096, 7168), (40, 4096, 2048), (1100, 8200, 1040)])
@pytest.mark.parametrize("op", ("int8_mm", "fp8_mm"))
def test_every_kernel_gives_the_same_bits_every_time(op, m, n, k):
    """Sizes that are several turns of the device, or less than one, and that stream-K splits; in a graph too."""
    need(op)
    x = randn(m, k, seed=m)
    if op == "int8_mm":
        packed, scale, w_sum = parts = int8_weight(n, k, DEVICE, True)
        call = lambda config: torch.ops.aoq.int8_mm(x, packed, scale, w_sum, None, n, config)  # noqa: E731
    else:
        packed, scale = parts = fp8_weight(n, k, DEVICE, E4M3)
        arguments = (x, packed, scale, None, n, E4M3, E4M3, "row", None, None)
        call = lambda config: torch.ops.aoq.fp8_mm(*arguments, config)  # noqa: E731
    for config, name in enumerate(_C.cuda_kernels(op, capability())):
        if "e5m2" in name:
            continue
        (check_int8 if op == "int8_mm" else check_fp8)(x, parts, n, config=config)
        assert _C.last_kernel() == name
        first = call(config)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = call(config)
        for _ in range(3):
            graph.replay()
            assert torch.equal(captured, first) and torch.equal(call(config), first), name


def test_rows_that_are_not_finite(sm):
    for op, weight in (("int8_mm", int8_weight), ("fp8_mm", fp8_weight)):
        if not _C.cuda_kernels(op, capability()):
            continue
        parts = weight(64, 128, DEVICE)
        x = randn(20, 128)
        clean = getattr(torch.ops.aoq, op)(x, *parts, None, 64)
        x[3, 5] = float("inf")
        out = getattr(torch.ops.aoq, op)(x, *parts, None, 64)
        assert out[3].isnan().all()
        others = torch.arange(20, device=DEVICE) != 3
        assert torch.equal(out[others], clean[others])


def test_bad_operands_are_named():
    need("int8_mm")
    packed, scale, _ = int8_weight(24, 64, DEVICE)
    x = randn(3, 64)
    for changed, text in [
        ((x[:, :32], packed, scale, None, None), "packed: expected shape"),
        ((x, packed.view(torch.uint8), scale, None, None), "packed: expected int8"),
        ((x, packed, scale[:1], None, None), "scale"),
        ((x, packed, scale, None, randn(23)), "bias"),
    ]:
        with pytest.raises(RuntimeError, match=text):
            torch.ops.aoq.int8_mm(*changed, 24)
    with pytest.raises(RuntimeError, match="config: expected -1 to"):
        torch.ops.aoq.int8_mm(x, packed, scale, None, None, 24, 99)
