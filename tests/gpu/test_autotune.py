"""AOQ_AUTOTUNE on a GPU: what is timed, what runs then, and that captures and tracing time nothing."""

import json

import pytest
import torch
from operands import FORMATS, of_format, randn, runs, weight

from aoq import _C

N, K = 2048, 1024
MATMULS = [op for op in _C.ops() if getattr(torch.ops.aoq, op).default._schema.arguments[-1].name == "config"]


@pytest.fixture(params=MATMULS)
def matmul(request, tmp_path, monkeypatch):
    """`matmul(m, **options)`: a problem of each op that has configs, with tuning on; `matmul.known()`: the file's."""
    op = request.param
    if not runs(op):
        pytest.skip(f"{op} has no CUDA kernels for this device")
    file = tmp_path / "tuned.json"
    monkeypatch.setenv("AOQ_AUTOTUNE_FILE", str(file))
    if op == "int4_mm":
        arguments = (*weight(N, K, 128, "cuda"), None, N, 128)
    else:
        arguments = of_format(op, FORMATS[op].quantize(randn(N, K, device="cpu")).to("cuda"))

    def call(m, **options):
        return getattr(torch.ops.aoq, op).default(xs[m], *arguments, **options)

    xs = {m: randn(m, K, seed=m) for m in (1, 16, 100)}
    call.known = lambda: json.loads(file.read_text())["configs"] if file.exists() else {}
    call.op = op
    _C.set_autotune("1")
    yield call
    _C.set_autotune("")


def test_what_was_found_is_what_runs(matmul):
    for m in (1, 100):
        before = matmul.known()
        out = matmul(m)
        ((key, entry),) = [item for item in matmul.known().items() if item[0] not in before]
        assert key.startswith(f"{matmul.op} on {torch.cuda.get_device_name()}, ")
        assert f"m <= {1 if m == 1 else 128}, n {N}, k {K}" in key
        assert 0 < entry["ns"] <= entry["model_ns"] < 1e8
        same = [matmul(m), matmul(m), matmul(m, config=entry["config"])]
        _C.set_autotune("read")
        same.append(matmul(m))
        _C.set_autotune("1")
        assert all(torch.equal(other, out) for other in same), "each config gives the same bits every time"
        assert len(matmul.known()) == len(before) + 1


def test_off_is_the_cost_models_choice(matmul):
    matmul(16)
    _C.set_autotune("")
    assert torch.equal(matmul(16), matmul(16, config=-1))
    count = len(matmul.known())
    matmul(100)
    assert len(matmul.known()) == count == 1


def test_a_capture_times_nothing_and_runs_what_is_known(matmul):
    _C.set_autotune("")
    matmul(16)  # loads what the model's choice needs
    _C.set_autotune("1")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        unknown = matmul(16)
    assert not matmul.known()
    graph.replay()
    eager = matmul(16)
    assert len(matmul.known()) == 1
    graph_of_known = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph_of_known):
        out = matmul(16)
    out.zero_()
    graph_of_known.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, eager)
    _C.set_autotune("")
    assert torch.equal(unknown, matmul(16)), "the cost model's choice"


def test_tracing_times_nothing_and_a_compiled_graph_does(matmul):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        assert matmul(16).shape == (16, N)
    assert not matmul.known()
    out = torch.compile(lambda: matmul(16), backend="aot_eager")()
    ((_, entry),) = matmul.known().items()
    assert torch.equal(out, matmul(16, config=entry["config"]))


def test_on_a_stream_of_its_own(matmul):
    wanted = matmul(100)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        out = matmul(100)
        fresh = matmul(1)
    stream.synchronize()
    assert torch.equal(out, wanted) and torch.equal(fresh, matmul(1))
