"""What holds for every op on CUDA: the CPU's results, graphs, streams, devices, opcheck; the same bits every time."""

import pytest
import torch
from operands import operands, run

BITS = ("quantize", "unpack")  # ops whose results are the CPU's to the bit


def same(got, wanted):
    return all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(got, wanted, strict=True))


def on_cpu(tensors):
    return [tensor.cpu() for tensor in tensors]


def test_agrees_with_the_cpu(sm, op):
    if not op.endswith(BITS):
        pytest.skip("another layout, or sums in another order: has a test of its own")
    assert same(on_cpu(run(op)), run(op, "cpu"))


def test_same_bits_every_time(sm, op):
    arguments = operands(op, "cuda")
    first = run(op, arguments=arguments)
    for _ in range(5):
        torch.empty(1 << 20, device="cuda").fill_(float("nan"))  # what new memory holds
        assert same(run(op, arguments=arguments), first)


def test_graph_capture(sm, op):
    """Nothing waits for the device or allocates behind torch's back; a replay sees new values."""
    arguments = operands(op, "cuda")
    wanted = run(op, arguments=arguments)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run(op, arguments=arguments)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(op, arguments=arguments)
    for tensor in out:
        tensor.view(torch.uint8).fill_(0xA5)
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    assert same(out, wanted)
    first = arguments[0]
    first.copy_(first.flip(0))
    graph.replay()
    assert same(out, run(op, arguments=arguments))


def test_current_stream(op):
    """Work is queued on the current stream: it sees what was queued there before, and not what the default one does."""
    arguments = operands(op, "cuda")
    wanted = run(op, arguments=arguments)
    values = arguments[0].clone()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    arguments[0].zero_()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        arguments[0].copy_(values)
        out = run(op, arguments=arguments)
    stream.synchronize()
    assert same(out, wanted)


def test_device_guard(op):
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    with torch.cuda.device(0):
        assert same(on_cpu(run(op, "cuda:1")), on_cpu(run(op, "cuda:0")))
        assert torch.cuda.current_device() == 0


def test_opcheck(op):
    torch.library.opcheck(getattr(torch.ops.aoq, op).default, operands(op, "cuda"))
