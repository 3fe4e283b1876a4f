"""README's table of models and docs/benchmarks/README.md, from the JSON of `make bench`. Run it to update them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from aoq.bench.measure import WAYS
from aoq.bench.report import (
    Spread,
    by_op,
    figures,
    limit,
    milliseconds,
    model_figures,
    ops,
    problems,
    shapes,
    times,
    versus,
)

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "benchmarks"
BEGIN, END = "<!-- benchmarks: scripts/benchmark_tables.py -->\n", "<!-- end of benchmarks -->\n"
KINDS = {op: way.title for op, way in WAYS.items()}

# Further runs of `aoq bench`, by the names of their files: the page has a table of each one that there is.
FURTHER = {
    "isas": "aoq with the kernels of older machines",
    "variants": "int4 with and without zero points, and with ragged groups",
    "one_thread": "One thread",
}

INTRODUCTION = """# Benchmarks

`make bench` writes this page, its pictures, and the JSON that both are made of: every round of every contender.

Contenders run in processes of their own and take turns, round after round. A call counts if a loop of a few
microseconds just before and just after it took no longer than usual on every thread. Each call reads another copy of
the weight, more of them than caches hold. Ratios are medians over paired rounds, with quartiles. The limit is the time
to read the weight once or to multiply at the instruction's full rate, whichever is longer, measured in the same rounds.
What a contender returns is checked first, against fp64, with what its roundings allow.

```sh needs peers, a quarter of an hour
aoq bench --quick                                    # a minute: aoq, torch and what else is installed here
aoq bench --op int4_mm --shapes 4096x4096,14336x4096 --m 1,16,256 --plot roofline.png --json figures.json
aoq bench --python vllm=DIR --only aoq --only vllm   # a peer from another virtual environment
aoq bench --isa avx2                                 # aoq's kernels for an older machine besides
aoq bench --model DIR --random-model llama-3.2-1b --compile
```

On a busy machine `--realtime` helps (root). Ctrl-C keeps what was measured.
"""

Json = dict[str, Any]


def markdown(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "".join(f"| {' | '.join(line)} |\n".replace("|  |", "| |") for line in lines)


def cases_of(report: Json, n: int, k: int) -> list[Json]:
    return [case for case in report["cases"] if (case["n"], case["k"]) == (n, k)]


def main_table(report: Json) -> str:
    """Every contender at the first shape: ms, and how many times faster than torch; each op's fastest in bold."""
    n, k, group_size = shapes(report)[0]
    cases = cases_of(report, n, k)
    found = [figures(report, case) for case in cases]
    rows = []
    for op in (*ops(report), "bf16"):
        names = [name for name in by_op(report, op) if any(name in figure for figure in found)]
        for name in names:
            cells = []
            for figure in found:
                if name not in figure:
                    cells.append("")
                    continue
                text = milliseconds(figure[name].seconds.median)
                fastest = min(figure[other].seconds.median for other in names if other in figure)
                if len(names) > 1 and figure[name].seconds.median == fastest:
                    text = f"**{text}**"
                ratio = figure[name].vs_plain
                cells.append(text if ratio is None else f"{text} ({factor(ratio.median)})")
            ours = name in [contender["name"] for contender in report["contenders"] if contender["ours"]]
            rows.append([KINDS.get(op, "bf16"), f"**{name}**" if ours else name, *cells])
    for i in range(len(rows) - 1, 0, -1):  # a kind is named once
        if rows[i][0] == rows[i - 1][0]:
            rows[i][0] = ""
    heading = [f"{n}x{k}, group {group_size}; ms", "", *(f"M={case['m']}" for case in cases)]
    return markdown(heading, rows)


def factor(ratio: float) -> str:
    return f"{ratio:.2f}x" if ratio < 0.95 else f"{ratio:.1f}x"


def peers_table(report: Json) -> str:
    """For each op and m, aoq beside the best peer: the least and the most over all shapes."""
    ms = list(dict.fromkeys(case["m"] for case in report["cases"]))
    rows = []
    for op in ops(report):
        ours = by_op(report, op)[0]
        cells = []
        for m in ms:
            found = [figures(report, case).get(ours) for case in report["cases"] if case["m"] == m]
            ratios = [figure.vs_peer.median for figure in found if figure is not None and figure.vs_peer is not None]
            least, most = min(ratios, default=0), max(ratios, default=0)
            cells.append(f"{least:.2f}-{most:.2f}x" if least < most else f"{most:.2f}x" if ratios else "")
        rows.append([f"`{op}`", *cells])
    names = ", ".join(f"{n}x{k}" for n, k, _ in shapes(report))
    over = f", from the worst to the best of {names}" if len(shapes(report)) > 1 else ""
    heading = ["", *(f"M={m}" for m in ms)]
    return f"How many times faster than the best peer of the same kind{over}:\n\n{markdown(heading, rows)}"


# README's table: of each model torch's own and these.
BRIEF = ("aoq int4, int8 head", "aoq int8-int4, int8 head", "aoq int8")


def models_table(report: Json, whole: bool = False) -> str:
    """Whole models: memory, tokens a second. If `whole`: all contenders, peak memory, time to the first token."""
    rows = []
    for model in report["models"]:
        known = [result["contender"] for result in model["results"]]
        brief = BRIEF if set(BRIEF) & set(known) else known
        for result in model["results"]:
            found = model_figures(report, model, result)
            base = result is model["results"][0]
            if found is None or not (whole or base or result["contender"] in (*brief, *by_op(report, "bf16"))):
                continue
            prefill = f"{model['prompt'] / found.first.median:,.0f}" + brackets(found.first_vs_plain)
            decode = f"{1 / found.next.median:.1f}" + brackets(found.next_vs_plain)
            name = model["name"] + ", random" * model["random"] + ", compiled" * model["compiled"]
            memory, start = [f"{result['bytes'] / 1e6:,.0f}"], []
            if whole:
                memory.append(f"{result['peak'] / 1e6:,.0f}")
                start.append(f"{1e3 * found.first.median:,.0f}")
            rows.append([name if base else "", result["contender"], *memory, *start, prefill, decode])
    model = report["models"][0]
    speeds = [f"reading {model['prompt']} tokens, tokens/s", "writing, tokens/s"]
    more = ["peak MB of the process", "ms to the first token"] if whole else []
    return markdown(["", f"g{model['group_size']}", "MB", *more, *speeds], rows)


def brackets(ratio: Spread | None) -> str:
    return f" ({factor(ratio.median)})" if ratio is not None else ""


def plain(report: Json) -> str:
    """What everything was compared with."""
    names = by_op(report, "bf16")
    return names[0] if len(names) == 1 else f"the faster of {' and '.join(names)}"


def conditions(report: Json) -> str:
    """What it was measured on, and with."""
    about = report["machine"]
    caches = ", ".join(f"{name} {size / 1024:,.0f} KB" for name, size in about["caches"].items())
    versions = {c["package"]: c["version"] for c in report["contenders"] if "version" in c and not c["ours"]}
    peers = ", ".join(f"{package} {version}" for package, version in versions.items())
    priority = "" if about["scheduling"] == "normal" else f" at {about['scheduling']} priority"
    return (
        f"{about['cpu']} ({', '.join(about['aoq']['isas'][:-1])}; {caches}), {about['threads']} threads{priority}, "
        f"{report['measured'][:10]}; {peers}."
    )


def readme_part(report: Json, models: Json) -> str:
    return (
        f"{models_table(models)}\nTransformers, eager or compiled; in brackets the speed-up over {plain(models)}. "
        f"{conditions(report)}\n`make bench` measures this anew and writes the table; "
        "[docs/benchmarks](docs/benchmarks/README.md) has matmuls beside every peer, other models and shapes, and the "
        "machine's limits.\n"
    )


def page(report: Json, models: Json, further: dict[str, Json] | None = None) -> str:
    """Everything, for docs/benchmarks; `further` by the names in `FURTHER`."""
    text = (
        f"{INTRODUCTION}\n{conditions(report)}\n\n## In short\n\n{main_table(report)}\n"
        f"Through `F.linear` on bf16 x, cold weights; in brackets the speed-up over {plain(report)}.\n\n"
        f"{peers_table(report)}"
    )
    for n, k, group_size in shapes(report):
        picture = FOLDER / (f"cpu-{n}x{k}.png" if len(shapes(report)) > 1 else "cpu.png")
        text += f"\n## {n}x{k}, group {group_size}\n\n![roofline]({picture.name})\n"
        cases = cases_of(report, n, k)
        for op in ops(report):
            found = [figures(report, case) for case in cases]
            names = [
                name for name in (*by_op(report, op), *by_op(report, "bf16")) if any(name in each for each in found)
            ]
            rows = []
            for case, each in zip(cases, found, strict=True):
                cells = [milliseconds(each[name].seconds.median) if name in each else "" for name in names]
                least = Spread.of(limit(report, op, case))
                ours = each.get(by_op(report, op)[0])
                beside = ["", "", "", ""]
                if ours is not None and ours.of_limit is not None:
                    beside = [
                        f"{ours.of_limit.median:.0%}",
                        times(ours.vs_peer),
                        ours.peer or "",
                        versus(ours.vs_plain, ours.plain),
                    ]
                rows.append([str(case["m"]), *cells, milliseconds(least.median) if least else "", *beside])
            heading = [f"`{op}`, ms; M", *names, "limit", "of limit", "against best peer", "best peer", "against torch"]
            text += "\n" + markdown(heading, rows)
    for name, run in (further or {}).items():
        text += f"\n## {FURTHER[name]}\n\n{main_table(run)}\n{conditions(run)}\n"
    text += "\n## Whole models\n\n" + models_table(models, whole=True)
    missing = [*problems(report), *problems(models)]
    return text + ("\n## Not measured\n\n" + "".join(f"- {line}\n" for line in missing) if missing else "")


def updated(readme: str, report: Json, models: Json) -> str:
    """README with the part between the markers made anew. Raises ValueError without the markers."""
    before, rest = readme.split(BEGIN)
    return before + BEGIN + readme_part(report, models) + END + rest.split(END)[1]


def stored() -> tuple[Json, Json]:
    """The figures under docs/benchmarks: of matmuls, of models."""
    report, models = (json.loads((FOLDER / name).read_text()) for name in ("cpu.json", "models.json"))
    return report, models


def stored_further() -> dict[str, Json]:
    """Those of the runs in `FURTHER` that were made."""
    files = {name: FOLDER / f"{name}.json" for name in FURTHER}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(updated(readme.read_text(), *stored()))
    (FOLDER / "README.md").write_text(page(*stored(), stored_further()))
