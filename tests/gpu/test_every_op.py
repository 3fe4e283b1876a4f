"""What holds for every op on CUDA: the CPU's results, graphs, streams, devices, opcheck; the same bits every time."""

import pytest
import torch
from operands import DEVICE, ROWS, has_rows, operands, run

from aoq import _C

BITS = ("quantize", "unpack")  # ops whose results are the CPU's to the bit


@pytest.fixture(params=ROWS, ids=lambda m: f"m{m}")
def m(request, op):
    if request.param != ROWS[0] and not has_rows(op):
        pytest.skip(f"{op} takes no rows of x")
    return request.param


def same(got, wanted):
    return all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(got, wanted, strict=True))


def on_cpu(tensors):
    return [tensor.cpu() for tensor in tensors]


def poison():
    """What new memory holds."""
    torch.empty(1 << 20, device=DEVICE).fill_(float("nan"))


def captured(call):
    """A graph of the call, and what it writes to."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    return graph, out


def test_agrees_with_the_cpu(sm, op, m):
    if not op.endswith(BITS):
        pytest.skip("another layout, or sums in another order: has a test of its own")
    assert same(on_cpu(run(op, m=m)), run(op, "cpu", m=m))


def test_same_bits_every_time(sm, pdl, op, m):
    arguments = operands(op, DEVICE, m)
    first = run(op, arguments=arguments)
    for _ in range(5):
        poison()
        assert same(run(op, arguments=arguments), first)


@pytest.mark.queued
def test_graph_capture(sm, pdl, op, m):
    """Nothing waits for the device or allocates behind torch's back; a replay sees new values."""
    arguments = operands(op, DEVICE, m)
    wanted = run(op, arguments=arguments)
    graph, out = captured(lambda: run(op, arguments=arguments))
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


@pytest.mark.queued
def test_what_the_kernel_before_writes_is_read(sm, op, m):
    """x and all parts of the weight, written by the kernel right before: a kernel that starts early waits for it."""
    arguments = operands(op, DEVICE, m)
    tensors = [i for i, part in enumerate(arguments) if isinstance(part, torch.Tensor)]
    sources = {i: arguments[i].clone() for i in tensors}
    _C.set_pdl("0")
    wanted = run(op, arguments=arguments)
    _C.set_pdl("")
    for last in tensors:  # the one that is written right before

        def call(last=last):
            for i in [*(i for i in tensors if i != last), last]:
                arguments[i].view(torch.uint8).fill_(0)
                arguments[i].copy_(sources[i])
            return run(op, arguments=arguments)

        graph, out = captured(call)
        for _ in range(10):
            graph.replay()
            assert same(out, wanted), f"argument {last}"


@pytest.mark.queued
def test_current_stream(op, m):
    """Work is queued on the current stream: it sees what was queued there before, and not what the default one does."""
    arguments = operands(op, DEVICE, m)
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


def two_devices():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")


def test_device_guard(op, m):
    """Operands say the device, whichever is current."""
    two_devices()
    with torch.cuda.device(0):
        for _ in range(3):  # in turns: what is read of one device is not the other's
            assert same(on_cpu(run(op, "cuda:1", m=m)), on_cpu(run(op, "cuda:0", m=m)))
            assert torch.cuda.current_device() == 0


def test_operands_on_two_devices_are_refused(op):
    two_devices()
    arguments = operands(op, "cuda:0")
    tensors = [i for i, part in enumerate(arguments) if isinstance(part, torch.Tensor)]
    if len(tensors) < 2:
        pytest.skip(f"{op} takes one tensor")
    for i in tensors[1:]:
        moved = [part.to("cuda:1") if j == i else part for j, part in enumerate(arguments)]
        with pytest.raises(RuntimeError, match=r"expected the device of|on the same device"):
            run(op, arguments=tuple(moved))


def test_opcheck(op):
    torch.library.opcheck(getattr(torch.ops.aoq, op).default, operands(op, DEVICE))
