"""tests/gpu: its operands for each op, on the CPU."""

import sys
from pathlib import Path

import pytest
import torch

from aoq import _C

sys.path.insert(0, str(Path(__file__).parents[1] / "gpu"))
import operands


@pytest.mark.parametrize("op", _C.ops())
def test_every_op_has_operands(op):
    """A new op's GPU tests need nothing but these."""
    out = operands.run(op, "cpu")
    assert out and all(isinstance(part, torch.Tensor) for part in out)


@pytest.mark.parametrize("op", operands.FORMATS)
def test_formats_run_their_op(op):
    w = operands.FORMATS[op].quantize(torch.randn(48, 208).bfloat16())
    assert w.mm_op == op
    x = operands.randn(5, 208, device="cpu")
    assert torch.equal(getattr(torch.ops.aoq, op)(x, *operands.of_format(op, w)), torch.nn.functional.linear(x, w))
