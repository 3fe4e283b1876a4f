"""benchmarks/cuda.py: what it makes of figures, which needs no GPU."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "benchmarks/cuda.py"
spec = importlib.util.spec_from_file_location("benchmarks_cuda", FILE)
cuda = sys.modules["benchmarks_cuda"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cuda)

MACHINE = cuda.Machine("a GPU", 4e12, 800e12)
CASE = cuda.Case(8192, 8192, 1)


def result(contender, seconds, regime="steady", case=CASE, bits=4, why=""):
    return cuda.Result(contender, case, regime, bits, 0.001, list(seconds), why)


def test_what_matters_comes_first():
    cases = cuda.cases([(10, 20), (30, 40)], (1, 16))
    assert cases == [cuda.Case(10, 20, 1), cuda.Case(30, 40, 1), cuda.Case(10, 20, 16), cuda.Case(30, 40, 16)]


def test_the_floor_is_what_binds():
    codes, scales, x_and_out = 8192 * 8192 / 2, 2 * 8192 * 64, 2 * 2 * 8192
    assert cuda.least_bytes(CASE, 4) == codes + scales + x_and_out
    assert cuda.least_bytes(CASE, 16) == 8192 * 8192 * 2 + x_and_out
    assert cuda.floor(MACHINE, CASE, 4) == ((codes + scales + x_and_out) / 4e12, "memory")
    many = cuda.Case(8192, 8192, 4096)
    assert cuda.floor(MACHINE, many, 4) == (2 * 4096 * 8192**2 / 800e12, "compute")


def test_turns_alternate():
    assert list(cuda.alternating(3, 2)) == [(0, 0), (0, 1), (0, 2), (1, 2), (1, 1), (1, 0)]
    turns = list(cuda.alternating(4, 5))
    assert all(sum(i == contender for _, i in turns) == 5 for contender in range(4))


def test_median_spread_and_the_fastest():
    a, b = result("a", [3e-6, 1e-6, 2e-6]), result("b", [1.5e-6, 1.4e-6, 1.6e-6])
    assert a.median == 2e-6 and a.spread == pytest.approx(1.0)
    none, other = result("c", []), result("d", [1e-9], "isolated")
    assert cuda.best_by_case([a, b, none, other], "steady") == {CASE: "b"}


def test_tables_say_what_was_not_measured():
    failed = result("broken", [], why="wrong at m = 1: relative error 1")
    text = cuda.markdown(MACHINE, [result("a", [20e-6, 20e-6]), result("b", [10e-6, 12e-6]), failed], "a note")
    floor = cuda.floor(MACHINE, CASE, 4)[0]
    assert "a note" in text and "- broken: wrong at m = 1" in text and "4.00 TB/s copy, 800 TFLOP/s" in text
    assert (
        f"| 1 | {floor * 1e6:.1f} (memory) | 20.0 ({floor / 20e-6:.0%}, 0%) | **11.0** ({floor / 11e-6:.0%}, 18%) | - |"
        in text
    )


def test_files_are_written_as_figures_come(tmp_path):
    results = [result("a", [20e-6, 21e-6]), result("bf16", [60e-6], bits=16)]
    for count in (1, 2):
        cuda.write(tmp_path, MACHINE, results[:count])
        figures = json.loads((tmp_path / "cuda.json").read_text())
        assert len(figures["results"]) == count and figures["results"][0]["case"] == {"n": 8192, "k": 8192, "m": 1}
        assert (tmp_path / "cuda.md").read_text().startswith("# int4 matmuls on a GPU")
    assert (tmp_path / "roofline.png").read_bytes()[:4] == b"\x89PNG"


def test_peers_that_are_not_here_are_named():
    found, missing = cuda.contenders(["bf16", "mslk"], [3])
    assert [contender.name for contender in found[:3]] == ["aoq int4_mm", "aoq config 3", "torch bf16"]
    assert len(found) + len(missing) == 4 and all(line.startswith("mslk") for line in missing)
