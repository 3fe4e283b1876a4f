"""`config` of the ops that have several plans or kernels on CUDA: which plan to run, for benchmarks and tests."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import aoq

E4M3 = torch.float8_e4m3fn


def operands(op):
    """x and what the op takes of a weight [32, 64], up to its config."""
    symmetric = aoq.MappingType.SYMMETRIC
    config = {
        "int4_mm": lambda: aoq.Int4WeightOnlyConfig(32, mapping_type=symmetric),
        "int8_int4_mm": lambda: aoq.Int8DynamicActivationInt4WeightConfig(
            32, mapping_type=symmetric, act_mapping_type=symmetric
        ),
        "int8_mm": aoq.Int8DynamicActivationInt8WeightConfig,
        "fp8_mm": lambda: aoq.Float8DynamicActivationFloat8WeightConfig(granularity=aoq.PerRow()),
        "int8_weight_mm": aoq.Int8WeightOnlyConfig,
        "fp8_weight_mm": aoq.Float8WeightOnlyConfig,
    }[op]()
    w = config.quantize(torch.randn(32, 64))
    rest = {
        "int4_mm": lambda: (w.zero_point, None, 32, 32),
        "int8_int4_mm": lambda: (w.zero_point, w.w_sum, None, 32, 32),
        "int8_mm": lambda: (w.w_sum, None, 32),
        "fp8_mm": lambda: (None, 32, E4M3, E4M3, "row", None, None),
        "int8_weight_mm": lambda: (None, 32),
        "fp8_weight_mm": lambda: (None, 32, E4M3),
    }[op]()
    return (torch.randn(3, 64), w.qdata, w.scale, *rest)


@pytest.mark.parametrize("op", ("int4_mm", "int8_int4_mm", "int8_mm", "fp8_mm", "int8_weight_mm", "fp8_weight_mm"))
def test_the_last_argument_is_a_config(op):
    call = getattr(torch.ops.aoq, op).default
    last = call._schema.arguments[-1]
    assert (last.name, str(last.type), last.default_value) == ("config", "int", -1)
    args = operands(op)
    torch.library.opcheck(call, (*args, -1))
    assert torch.equal(call(*args, -1), call(*args))
    refused = "config: expected -1, as the CPU's kernels have none, got 3"
    with pytest.raises(RuntimeError, match=refused):  # a bare op's, with the type in its text
        call(*args, 3)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = [mode.from_tensor(arg) if isinstance(arg, torch.Tensor) else arg for arg in args]
        assert call(*fake, -1).shape == (3, 32)
        with pytest.raises(ValueError, match=refused):
            call(*fake, 3)
