"""Figures -> tables: pairing, ratios, limits."""

import io
import math

import pytest
from rich.console import Console

from aoq.bench.report import (
    Spread,
    figures,
    least_bytes,
    limit,
    milliseconds,
    paired,
    print_report,
    problems,
    times,
    versus,
)


def case(n=4096, k=4096, m=1, rounds=3, **seconds):
    """A case in which each contender takes `seconds`; limits are 10 GB/s and 1 TOP/s."""
    peaks = {"vdpbf16ps": 5e11, "vpdpbusd": 1e12, "vfmadd zmm": 2.5e11}
    limits = {"bandwidth": 1e10, "peaks": peaks, "gate": {"iterations": 1, "seconds": 1e-6}}
    results = [
        {"contender": name, "status": "ok", "seconds": taken, "calls": [9] * rounds, "quiet": [9] * rounds}
        for name, taken in seconds.items()
    ]
    return {"n": n, "k": k, "group_size": 128, "m": m, "limits": [limits] * rounds, "results": results}


def report(*cases):
    ops = {"ours": "int4_mm", "fast": "int4_mm", "slow": "int4_mm", "other": "int8_mm", "base": "bf16"}
    return {
        "machine": {"cpu": "a CPU", "scheduling": "normal", "torch": "2", "aoq": {"version": "0", "isas": ["amx"]}},
        "settings": {"threads": 2, "rounds": 3},
        "instructions": {"vdpbf16ps": "bf16", "vpdpbusd": "int8", "vfmadd zmm": "f32"},
        "contenders": [
            {"name": name, "op": op, "package": name, "ours": name == "ours", "status": "ok", "version": "1"}
            for name, op in ops.items()
        ],
        "cases": list(cases),
        "models": [],
    }


def test_spread():
    assert Spread.of([]) is None
    assert Spread.of([2.0]) == Spread(2, 2, 2)
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 5.0]) == Spread(3, 2, 4)


def test_ratios_are_of_paired_rounds():
    """A round in which everything took ten times as long does not change the ratio."""
    assert paired([2.0, 20.0, 2.0], [1.0, 10.0, 1.0]) == Spread(2, 2, 2)
    assert paired([2.0, None, 4.0], [1.0, 1.0, 1.0]) == Spread(3, 2.5, 3.5)
    assert paired([2.0, 4.0], [1.0]) == Spread(2, 2, 2)
    assert paired([None], [1.0]) is None
    assert times(Spread(3, 2.5, 3.5)) == "3.00x (2.50-3.50)"


def test_figures():
    measured = case(ours=[1e-3, 1e-2, 1e-3], fast=[2e-3, 2e-2, 2e-3], slow=[3e-3] * 3, base=[4e-3, 4e-2, 4e-3])
    found = figures(report(measured), measured)["ours"]
    assert found.seconds.median == 1e-3
    assert found.peer == "fast" and found.vs_peer == Spread(2, 2, 2)
    assert found.vs_plain == Spread(4, 4, 4)
    assert found.of_limit.median == pytest.approx(least_bytes("int4_mm", measured) / 1e10 / 1e-3)
    assert not found.noisy
    base = figures(report(measured), measured)["base"]
    assert base.vs_plain is None and base.vs_peer is None


def test_the_best_peer_is_one_that_was_measured():
    measured = case(ours=[1e-3] * 3, slow=[3e-3] * 3, base=[4e-3] * 3)
    measured["results"].append({"contender": "fast", "status": "wrong", "why": "of an error", "wrongness": 2.0})
    found = figures(report(measured), measured)
    assert found["ours"].peer == "slow" and "fast" not in found
    alone = case(ours=[1e-3] * 3)
    assert figures(report(alone), alone)["ours"].peer is None
    assert figures(report(alone), alone)["ours"].vs_plain is None


def test_it_is_compared_with_the_faster_dtype_of_torch():
    measured = case(ours=[1e-3] * 3, base=[4e-3] * 3)
    measured["results"].append(
        {"contender": "fp32", "status": "ok", "seconds": [3e-3] * 3, "calls": [9] * 3, "quiet": [9] * 3}
    )
    whole = report(measured)
    whole["contenders"].append({"name": "fp32", "op": "bf16", "package": "torch", "ours": False})
    found = figures(whole, measured)
    assert (found["ours"].vs_plain, found["ours"].plain) == (Spread(3, 3, 3), "fp32")
    for name in ("base", "fp32"):
        assert found[name].vs_plain is None
    assert versus(Spread(3, 3, 3), "torch fp32") == "3.00x (3.00-3.00) fp32"
    assert versus(None, None) == ""


def test_a_noisy_figure_is_marked():
    measured = case(ours=[1e-3] * 3, base=[1e-3] * 3)
    measured["results"][0]["quiet"] = [0, 0, 5]
    assert figures(report(measured), measured)["ours"].noisy
    assert not figures(report(measured), measured)["base"].noisy


def test_limits():
    one, many = case(m=1), case(m=1024)
    assert least_bytes("int4_mm", one) == 4096 * 4096 / 2 + 4096 * 32 * 2 + 2 * 2 * 4096
    assert least_bytes("int8_mm", one) == 4096 * 4096 + 2 * 4096 + 2 * 2 * 4096
    assert least_bytes("bf16", one) == 2 * 4096 * 4096 + 2 * 2 * 4096
    whole = report(one, many)
    assert limit(whole, "int4_mm", one) == [least_bytes("int4_mm", one) / 1e10] * 3
    flops = 2 * 1024 * 4096 * 4096
    assert limit(whole, "int4_mm", many) == [flops / 5e11] * 3  # bf16: integers cannot multiply bf16 x
    assert limit(whole, "int8_int4_mm", many) == [flops / 1e12] * 3
    assert limit(whole, "bf16", many) == [flops / 5e11] * 3


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.1234, "123"), (12.34e-3, "12.3"), (1.234e-3, "1.23"), (0.5e-3, "0.50"), (6.789e-6, "0.0068")],
)
def test_milliseconds(seconds, text):
    assert milliseconds(seconds) == text


def test_the_table_says_everything():
    measured = case(ours=[1e-3] * 3, fast=[2e-3] * 3, base=[4e-3] * 3)
    measured["results"] += [
        {"contender": "slow", "status": "wrong", "why": "an error 2.0 times what its roundings allow"},
        {"contender": "other", "status": "ok", "seconds": [], "calls": [], "quiet": []},
    ]
    whole = report(measured)
    gone = {"name": "gone", "op": "int8_mm", "ours": False, "status": "missing", "why": "not there"}
    whole["contenders"].append(gone)
    console = Console(record=True, width=160, file=io.StringIO())
    print_report(whole, console)
    text = console.export_text()
    for wanted in ("int4_mm 4096x4096, group 128", "1.00", "2.00x (2.00-2.00)", "4.00x (4.00-4.00)", "wrong", "fast"):
        assert wanted in text
    for wanted in ("a CPU (amx), 2 threads", "slow: wrong: an error", "gone: missing: not there"):
        assert wanted in text
    assert list(problems(whole)) == [
        "gone: missing: not there",
        "slow: wrong: an error 2.0 times what its roundings allow (4096x4096, m = 1)",
    ]
    assert not math.isnan(figures(whole, measured)["ours"].seconds.median)
