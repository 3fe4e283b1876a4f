"""benchmarks/cuda.py: all but the GPU's clock, on the CPU."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(FOLDER))
from cuda_bench import contender as contending  # noqa: E402
from cuda_bench import figures, supervisor, timing  # noqa: E402
from cuda_bench.figures import Case, Machine, Result  # noqa: E402

from aoq import _C  # noqa: E402

spec = importlib.util.spec_from_file_location("benchmarks_cuda", FOLDER / "cuda.py")
cuda = sys.modules["benchmarks_cuda"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cuda)

MACHINE = Machine("a GPU", 4e12, {"bf16": 800e12, "fp8": 1600e12})
CASE = Case("int4_mm", 8192, 8192, 1)


def result(contender, seconds, regime="steady", case=CASE, why="", **fields):
    return Result(contender, case, regime, seconds=list(seconds), error=0.001, why=why, **fields)


def test_what_matters_comes_first():
    steps = cuda.steps(list(figures.OPS) + list(figures.QUANTIZERS))
    first = {step.op for step in steps[: len(figures.OPS)]}
    assert first == set(figures.OPS) and all((step.n, step.k) == (8192, 8192) for step in steps[: len(figures.OPS)])
    every = [(step.op, step.n, step.k, m) for step in steps for m in step.rows]
    assert len(set(every)) == len(every), "nothing is measured twice"
    matmuls = len(figures.OPS) * len(cuda.SHAPES) * len(cuda.ROWS)
    assert len(every) == matmuls + len(figures.QUANTIZERS) * len(cuda.QUANTIZER_ROWS)
    assert {(op, m) for op, n, k, m in every if op == "int4_mm"} == {("int4_mm", m) for m in cuda.ROWS}


def test_steps_are_what_is_asked_for():
    steps = cuda.steps(["fp8_mm"], [(16, 32)], [1, 1024])
    assert [(step.op, step.n, step.k, step.rows) for step in steps] == [
        ("fp8_mm", 16, 32, (1024,)),
        ("fp8_mm", 16, 32, (1,)),
    ]
    assert {step.op for step in cuda.steps(["int8_quantize"])} == {"int8_quantize"}


def test_the_floor_is_what_binds():
    codes, scales, x_and_out = 8192 * 8192 / 2, 2 * 8192 * 64, 2 * 2 * 8192
    assert figures.least_bytes(CASE) == codes + scales + x_and_out
    assert figures.least_bytes(CASE, 16) == 8192 * 8192 * 2 + x_and_out
    assert figures.floor(MACHINE, CASE) == ((codes + scales + x_and_out) / 4e12, "memory")
    many = Case("int4_mm", 8192, 8192, 4096)
    assert figures.floor(MACHINE, many) == (2 * 4096 * 8192**2 / 800e12, "compute, bf16")
    eight = Case("fp8_mm", 8192, 8192, 4096)
    assert figures.floor(MACHINE, eight) == (2 * 4096 * 8192**2 / 1600e12, "compute, fp8")
    assert figures.floor(MACHINE, eight, 16, "bf16")[0] == figures.floor(MACHINE, many)[0]
    unknown = Case("int8_mm", 8192, 8192, 4096)
    assert figures.floor(MACHINE, unknown)[1] == "memory", "a peak that was not measured does not bind"
    rows = Case("rmsnorm_quantize", 0, 4096, 8192)
    assert figures.floor(MACHINE, rows) == (7 * 4096 * 8192 / 4e12, "memory")


def test_turns_alternate():
    assert list(figures.alternating(3, 2)) == [(0, 0), (0, 1), (0, 2), (1, 2), (1, 1), (1, 0)]
    turns = list(figures.alternating(4, 5))
    assert all(sum(i == contender for _, i in turns) == 5 for contender in range(4))


def test_median_spread_and_the_fastest():
    a, b = result("a", [3e-6, 1e-6, 2e-6]), result("b", [1.5e-6, 1.4e-6, 1.6e-6])
    assert a.median == 2e-6 and a.spread == pytest.approx(1.0)
    none, other, part = result("c", []), result("d", [1e-9], "isolated"), result("e", [1e-9], part=True)
    assert figures.best_by_case([a, b, none, other, part], "steady") == {CASE: "b"}, "a part does not compete"


def test_tables_say_what_was_not_measured():
    failed = result("broken", [], why="wrong at m = 1: relative error 1")
    part = result("mm alone", [1e-6], part=True)
    rows = result("q", [2e-6], case=Case("int8_quantize", 0, 4096, 16))
    text = figures.markdown(
        MACHINE, [result("a", [20e-6, 20e-6]), result("b", [10e-6, 12e-6]), part, failed, rows], ["a note"]
    )
    floor = figures.floor(MACHINE, CASE)[0]
    assert "a note" in text and "- int4_mm, broken: wrong at m = 1" in text
    assert "4.00 TB/s copy, 800 TFLOP/s bf16, 1600 TFLOP/s fp8" in text and " *mm alone* |" in text
    cells = f"20.0 ({floor / 20e-6:.0%}, 0%) | **11.0** ({floor / 11e-6:.0%}, 18%) | 1.0 ("
    assert f"| 1 | {floor * 1e6:.1f} (memory) | {cells}" in text
    assert "## int8_quantize, steady, rows of 4096" in text and "| int4_mm | a | 1.00e-03 |" in text


def test_files_are_written_as_figures_come(tmp_path):
    results = [result("a", [20e-6, 21e-6]), result("bf16", [60e-6], bits=16, peak="bf16")]
    for count in (1, 2):
        figures.write(tmp_path, MACHINE, results[:count])
        written = json.loads((tmp_path / "cuda.json").read_text())
        assert len(written["results"]) == count
        assert written["results"][0]["case"] == {"op": "int4_mm", "n": 8192, "k": 8192, "m": 1}
        assert (tmp_path / "cuda.md").read_text().startswith("# aoq on a GPU")
    assert (tmp_path / "roofline.png").read_bytes()[:4] == b"\x89PNG"
    assert figures.read(tmp_path) == results and figures.read(tmp_path / "none") == []


def test_every_op_has_contenders_and_who_is_missing_is_named():
    found, missing = contending.contenders("cpu", ["bf16", "mslk"], [3])
    assert {c.op for c in found if c.name.startswith("aoq")} >= set(figures.OPS) | set(figures.QUANTIZERS)
    assert {c.op for c in found if c.name == "torch bf16"} == set(figures.OPS)
    assert any(c.name == "aoq int4_mm, config 3" for c in found)
    assert all("mslk" in line or "aoq" in line for line in missing)
    assert len([c.name for c in found if "mslk" in c.name] + [line for line in missing if "mslk" in line]) == 6


def test_a_figure_with_and_without_pdl(monkeypatch):
    """Off for these calls alone: contenders take turns in one process."""
    said = []
    monkeypatch.setattr(_C, "set_pdl", said.append)
    found, _ = contending.contenders("cpu", ["none"], [], True)
    without = [c for c in found if c.name.endswith(", no PDL")]
    assert {c.op for c in without} == set(figures.OPS)
    for contender in found:
        if contender.op in figures.OPS and not contender.part:
            del said[:]
            (result, _) = block(contender.op, [contender]).measure(2, 1)
            assert result.seconds, result.why
            assert set(said) == ({"0", ""} if contender in without else set()) and said[-1:] != ["0"]


class Clock:
    """In the GPU's place: calls, and counts."""

    def __init__(self, contender, weights, x, regime, flush):
        self.calls, self.copies = [], len(weights)
        contender.multiply(x, weights[-1])

    def seconds(self):
        self.calls.append(1)
        return 1e-6 * len(self.calls)


def block(op, found, n=80, k=256, **options):
    options = {"device": "cpu", "cold_bytes": 1e5, "timer": Clock, **options}
    return timing.Block(op, 0 if op in figures.QUANTIZERS else n, k, found, **options)


@pytest.mark.parametrize("op", [*figures.OPS, *figures.QUANTIZERS])
def test_aoq_is_right_on_every_op(op):
    """The operands, the exact weights and the tolerances, with the CPU's kernels."""
    found, _ = contending.contenders("cpu", ["torch bf16"])
    results = block(op, found).measure(5, 3)
    assert len(results) >= 2 and {r.regime for r in results} == set(figures.REGIMES)
    for r in results:
        assert not r.why and len(r.seconds) == 3 and 0 <= r.error < 0.05, (r.contender, r.why, r.error)
        if not r.part and op in figures.OPS:
            assert r.error < 0.005, "against what x and w became, only roundings are left"


def test_copies_are_cold_and_made_once():
    found, _ = contending.contenders("cpu", ["none"])
    one = block("int4_mm", found)
    one.measure(1, 1)
    (contender,) = one.found
    weights = one.weights[id(contender)]
    assert sum(map(contender.nbytes, weights[1:])) > 1e5 and len({w.qdata.data_ptr() for w in weights}) == len(weights)
    one.measure(2, 1)
    assert one.weights[id(contender)] is weights


class Wrong(contending.Contender):
    name, op, form, tolerance = "wrong", "int4_mm", "w", 0.01

    def __init__(self, how):
        self.how = how

    def weight(self, problem):
        return problem.w

    def multiply(self, x, weight):
        out = x @ weight.t()
        if self.how == "raises":
            raise RuntimeError("no kernel image\nand more")
        if self.how == "nan":
            out[0, 0] = math.nan
        if self.how == "shape":
            return out[:, :-1]
        return out * 1.02 if self.how == "off" else out


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("off", "wrong at m = 4, 80x256: relative error 0.02"),
        ("nan", "relative error inf"),
        ("shape", "returned (4, 79)"),
        ("raises", "RuntimeError: no kernel image"),
    ],
)
def test_who_is_wrong_is_not_timed(how, why):
    found = block("int4_mm", [Wrong(how)]).measure(4, 3)
    assert len(found) == len(figures.REGIMES)
    for r in found:
        assert not r.seconds and why in r.why


def test_who_is_slow_to_get_ready_is_left_out(monkeypatch):
    monkeypatch.setattr(timing, "PATIENCE", 0.0)
    spent = {}
    results = block("int4_mm", [Wrong("not")], spent=spent).measure(4, 1)
    assert results[0].seconds and "to get ready" in results[1].why


WORKER = """
import json, os, sys, time
sys.path.insert(0, {folder!r})
from pathlib import Path
from cuda_bench.supervisor import Notes
out, left_out = Path(sys.argv[1]), json.loads(sys.argv[2])
for name in ("a", "crashes", "b", "hangs", "c"):
    if name in left_out:
        continue
    Notes(out).write("int4_mm", name)
    if name == "crashes":
        os.abort()
    if name == "hangs":
        time.sleep(60)
    with open(out / "done", "a") as file:
        file.write(name)
"""


def test_who_crashes_or_hangs_is_left_out_and_the_rest_goes_on(tmp_path):
    seen = []

    def command(broken, left):
        seen.append((dict(broken), left))
        code = WORKER.format(folder=str(FOLDER))
        return [sys.executable, "-c", code, str(tmp_path), json.dumps([name for _, name in broken])]

    said = []
    assert supervisor.supervise(tmp_path, command, 100, hang=3, say=said.append) == 0
    assert (tmp_path / "done").read_text() == "aababc", "each run after the first without the one that ended it"
    assert list(seen[-1][0].items()) == [
        (("int4_mm", "crashes"), "crashed: SIGABRT"),
        (("int4_mm", "hangs"), "hung for 3 s"),
    ]
    assert len(said) == 2 and seen[-1][1] < 100 and not (tmp_path / "doing.json").exists()


def test_a_run_that_fails_before_any_turn_is_not_repeated(tmp_path):
    command = [sys.executable, "-c", "raise SystemExit(7)"]
    assert supervisor.supervise(tmp_path, lambda broken, left: command, 100, say=lambda text: None) == 7


def test_a_run_goes_on_where_one_before_has_ended(tmp_path, monkeypatch, capsys):
    """The whole of it but the GPU: the order, the files, what is left out, what is not measured twice."""
    made = []

    def on_cpu(op, n, k, found, **options):
        made.append(op)
        return block(op, found, n, k, **options)

    monkeypatch.setattr(cuda, "describe", lambda: MACHINE)
    monkeypatch.setattr(cuda, "contenders", lambda device, *options: contending.contenders("cpu", *options))
    monkeypatch.setattr(cuda, "Block", on_cpu)
    monkeypatch.setattr(cuda, "QUANTIZER_ROWS", ((256, 4), (64, 8)))

    def run(*options, broken=()):
        left_out = json.dumps([[*who, "hung for 9 s"] for who in broken])
        common = ["--shapes", "80x256", "--m", "1", "16", "--only", "torch bf16", "--out", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", ["cuda.py", *common, *options, "--worker", left_out])
        cuda.main()
        return figures.read(tmp_path), capsys.readouterr().out

    found, text = run("--ops", "int4_mm", "int8_quantize", "--minutes", "9")
    assert {(r.case.op, r.case.m) for r in found} == {
        ("int4_mm", 1),
        ("int4_mm", 16),
        *(("int8_quantize", m) for m in (4, 8)),
    }
    assert all(r.seconds for r in found) and "0 cases not reached" in text
    assert "int4_mm 80x256 m=1" in text and "isolated aoq int4_mm" in text
    before = list(made)
    again, text = run("--ops", "int4_mm", "int8_quantize", "fp8_mm", broken=[("fp8_mm", "aoq fp8_mm")])
    assert again[: len(found)] == found and made[len(before) :] == ["fp8_mm", "fp8_mm"]
    assert {r.contender for r in again if r.case.op == "fp8_mm"} == {"aoq fp8_quantize", "torch bf16"}
    assert "not here: fp8_mm, aoq fp8_mm: hung for 9 s" in text
    assert "hung for 9 s" in (tmp_path / "cuda.md").read_text()
    stopped, text = run("--ops", "int8_mm", "--minutes", "0")
    assert stopped == again and "2 cases not reached" in text
