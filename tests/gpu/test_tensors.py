"""Quantized tensors between devices: checkpoints are plain, so that no move changes a bit."""

import copy

import pytest
import torch
from operands import registered

import aoq
from aoq.ops.kernels import kernels
from aoq.tensors import QuantizedTensor

CONFIGS = [
    aoq.Int4WeightOnlyConfig(32),
    aoq.Int4WeightOnlyConfig(64, mapping_type=aoq.MappingType.SYMMETRIC),
    aoq.Int8DynamicActivationInt8WeightConfig(),
    aoq.Int8DynamicActivationInt4WeightConfig(32),
    aoq.Int8DynamicActivationInt8WeightConfig(act_mapping_type=aoq.MappingType.ASYMMETRIC),
    aoq.Float8DynamicActivationFloat8WeightConfig(granularity=aoq.PerRow()),
    aoq.Float8DynamicActivationFloat8WeightConfig(),
    aoq.Int8WeightOnlyConfig(),
    aoq.Float8WeightOnlyConfig(),
]


def model(config, device="cpu"):
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(200, 72), torch.nn.ReLU(), torch.nn.Linear(72, 33, bias=False))
    layers = layers.bfloat16().to(device)
    aoq.quantize_(layers, config)
    return layers


def plain_parts(layers):
    weights = [p for p in layers.parameters() if isinstance(p, QuantizedTensor)]
    return [part.cpu() for w in weights for part in w.unpack().parts() if part is not None]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(plain_parts(a), plain_parts(b), strict=True))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_there_and_back_is_bit_identical(config, tmp_path):
    original = model(config)
    moved = copy.deepcopy(original).to("cuda")
    assert all(p.is_cuda for p in moved.parameters())
    back = copy.deepcopy(moved).to("cpu")
    assert same(original, moved) and same(original, back)
    assert all(w.packed for w in back.parameters() if isinstance(w, QuantizedTensor)), (
        "also if CUDA has no kernel for it"
    )
    torch.save(moved.state_dict(), tmp_path / "moved.pt")
    loaded = model(config)
    loaded.load_state_dict(torch.load(tmp_path / "moved.pt", weights_only=True, map_location="cpu"))
    assert same(original, loaded)


def test_moving_without_waiting_packs_what_has_arrived():
    original = model(CONFIGS[0])
    moved, copied = copy.deepcopy(original).to("cuda"), copy.deepcopy(original).to("cuda")
    torch.cuda.synchronize()
    torch.cuda._sleep(20_000_000)  # copies from the device queue behind this
    assert same(original, moved.to("cpu", non_blocking=True))
    back = copied.to("cpu", non_blocking=True).to("cuda", non_blocking=True)
    assert same(original, back)


@pytest.mark.parametrize("config", CONFIGS[:2], ids=str)
def test_quantizing_on_the_gpu_gives_the_same_weights(config):
    assert same(model(config), model(config, "cuda"))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_linear(config):
    layers = model(config, "cuda")
    w = layers[0].weight
    if not kernels(w.mm_op, w.device):
        pytest.skip(f"{w.mm_op} has no kernel for this device")
    assert w.packed and w.kernel.startswith(f"{w.mm_op}_")
    x = torch.randn(3, 200, device="cuda").bfloat16()
    wanted = x.double() @ w.dequantize().double().t() + layers[0].bias.double()
    close = 0.15 if "Dynamic" in type(config).__name__ else 2e-2  # activations of 4 bits and a sign at least
    torch.testing.assert_close(layers[0](x).double(), wanted, rtol=close, atol=close)
    assert torch.equal(w.rows(torch.tensor([5, 70], device="cuda")), w.dequantize()[[5, 70]])
    compiled = torch.compile(layers, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), layers(x))


@pytest.mark.skipif(not registered("int4_mm"), reason="int4_mm has no CUDA kernel")
def test_compiled_with_cuda_graphs():
    layers, x = model(CONFIGS[0], "cuda"), torch.randn(3, 200, device="cuda").bfloat16()
    with torch.no_grad():
        wanted = layers(x)
        compiled = torch.compile(layers, mode="reduce-overhead", fullgraph=True)
        for _ in range(4):
            torch.testing.assert_close(compiled(x), wanted)
