"""silu_mul_quantize against fp64, and the same bits under every ISA of the machine."""

import pytest
import torch
from fused_quantize import E4M3, FusedQuantizeTests, check_codes, floats

from aoq.ops import silu_mul_quantize, silu_mul_quantize_reference


class TestSiluMulQuantize(FusedQuantizeTests):
    op = staticmethod(silu_mul_quantize)
    reference = staticmethod(silu_mul_quantize_reference)

    @staticmethod
    def operands(shape, dtype, seed):
        return [3 * floats(*shape, seed=seed).to(dtype), floats(*shape, seed=seed + 1).to(dtype)]

    @staticmethod
    def values(gate, up):
        return gate.double() / (1 + (-gate.double()).exp()) * up.double()


def test_every_size_of_gate(isa):
    """The exponential over all of its range: each gate alone in a row, so that its own error decides."""
    gate = torch.cat((torch.linspace(-86, 100, 4001), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e4, -87.5])))[:, None]
    up = torch.ones_like(gate)
    qdata, scale, zero_point, _ = silu_mul_quantize(gate, up, E4M3)
    values = TestSiluMulQuantize.values(gate, up)
    check_codes(qdata, scale, zero_point, values)
    big = values.abs() > 1e-10
    assert ((scale * 448 - values.abs()).abs()[big] <= 1e-6 * values.abs()[big]).all()


def test_far_negative_gates_vanish(isa):
    gate = torch.tensor([[-1e4, -200.0, -100.0, 1.0]])
    qdata, *_ = silu_mul_quantize(gate, torch.ones_like(gate), E4M3)
    assert qdata.float().tolist() == [[0, 0, 0, 448]]


def test_bad_operands_are_named():
    gate, up = TestSiluMulQuantize.operands((4, 64), torch.float32, 0)
    for args, error, text in [
        ((gate.double(), up, E4M3), TypeError, "gate: expected bfloat16"),
        ((gate, up[:, 1:], E4M3), ValueError, r"up: expected the first operand's shape \[4, 64\], got \[4, 63\]"),
        ((gate, up.bfloat16(), E4M3), TypeError, "up: expected the first operand's dtype float32, got bfloat16"),
        ((gate, up, torch.float32), TypeError, "dtype: expected int8, float8_e4m3fn or float8_e5m2, got float32"),
    ]:
        with pytest.raises(error, match=f"aoq::silu_mul_quantize: {text}"):
            silu_mul_quantize(*args)


def test_opcheck():
    gate, up = TestSiluMulQuantize.operands((2, 40), torch.bfloat16, 0)
    op = torch.ops.aoq.silu_mul_quantize.default
    torch.library.opcheck(op, (gate, up, torch.int8, "asymmetric", 16, True))
    torch.library.opcheck(op, (gate, up, E4M3))
