"""rmsnorm_quantize against fp64, and the same bits under every ISA of the machine."""

import pytest
import torch
from fused_quantize import DTYPES, E4M3, E5M2, FusedQuantizeTests, check_codes, floats, same

from aoq.ops import rmsnorm_quantize, rmsnorm_quantize_reference

EPS = 1e-6


def normalized(h, weight, eps=EPS):
    h = h.double()
    return h / (h.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()


class TestRmsnormQuantize(FusedQuantizeTests):
    @staticmethod
    def operands(shape, dtype, seed):
        x = floats(*shape, seed=seed).to(dtype)
        return x, 1 + 0.2 * floats(shape[-1], seed=seed + 1), floats(*shape, seed=seed + 2).to(dtype)

    @staticmethod
    def op(x, weight, residual, *args):
        return rmsnorm_quantize(x, weight, residual, EPS, *args)

    @staticmethod
    def reference(x, weight, residual, *args):
        return rmsnorm_quantize_reference(x, weight, residual, EPS, *args)

    @staticmethod
    def values(x, weight, residual):
        return normalized((x.float() + residual.float()).to(x.dtype), weight)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_residual(isa, dtype):
    x, weight, residual = TestRmsnormQuantize.operands((9, 100), dtype, 0)
    *_, out = rmsnorm_quantize(x, weight, residual, EPS, E4M3)
    assert torch.equal(out, x + residual)
    for weight_dtype in DTYPES:
        *parts, none = rmsnorm_quantize(out, weight.to(weight_dtype), None, EPS, E4M3)
        assert none.shape == (9, 0)
        check_codes(*parts[:3], normalized(out, weight.to(weight_dtype)))
        assert same(parts, rmsnorm_quantize(x, weight.to(weight_dtype), residual, EPS, E4M3)[:4])


def test_small_rows_need_eps(isa):
    x, weight = floats(4, 64) * 1e-4, torch.ones(64)
    for eps in (1e-6, 1e-3, 0.0):
        *parts, _ = rmsnorm_quantize(x, weight, None, eps, torch.int8)
        check_codes(*parts[:3], normalized(x, weight, eps))


def test_bad_operands_are_named():
    x, weight, residual = TestRmsnormQuantize.operands((4, 64), torch.float32, 0)
    for args, error, text in [
        ((x.double(), weight, None, EPS, E4M3), TypeError, "x: expected bfloat16"),
        ((x[:, :0], weight, None, EPS, E4M3), ValueError, "x: expected k > 0"),
        ((x, weight[1:], None, EPS, E4M3), ValueError, r"weight: expected shape \[64\], got \[63\]"),
        ((x, weight.int(), None, EPS, E4M3), TypeError, "weight: .*int32"),
        ((x, weight, residual[1:], EPS, E4M3), ValueError, r"residual: expected the first operand's shape \[4, 64\]"),
        ((x, weight, residual.half(), EPS, E4M3), TypeError, "residual: expected the first operand's dtype float32"),
        ((x, weight, None, -1.0, E4M3), ValueError, "eps: expected 0 or more, got -1"),
        ((x, weight, None, EPS, torch.uint8), TypeError, "dtype: expected int8, float8_e4m3fn or float8_e5m2, got"),
        ((x, weight, None, EPS, E5M2, "asymmetric"), ValueError, "mapping: expected symmetric for fp8 codes"),
        ((x, weight, None, EPS, torch.int8, "hqq"), ValueError, "mapping: expected symmetric or asymmetric, got hqq"),
        ((x, weight, None, EPS, torch.int8, "symmetric", -1), ValueError, "sum_group: expected 0 .no sums. or more"),
    ]:
        with pytest.raises(error, match=f"aoq::rmsnorm_quantize: {text}"):
            rmsnorm_quantize(*args)


def test_opcheck():
    x, weight, residual = TestRmsnormQuantize.operands((2, 40), torch.bfloat16, 0)
    op = torch.ops.aoq.rmsnorm_quantize.default
    torch.library.opcheck(op, (x, weight, residual, EPS, torch.int8, "asymmetric", 16, True))
    torch.library.opcheck(op, (x, weight, None, EPS, E4M3))
