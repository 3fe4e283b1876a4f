"""README's benchmark tables are those of the stored figures, and say what those say."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import benchmark_tables as tables
from test_report import case, report

ROOT = Path(__file__).parents[2]

needs_figures = pytest.mark.skipif(not (tables.FOLDER / "cpu.json").exists(), reason="nothing was measured yet")


def models():
    results = [
        {"contender": "ours", "status": "ok", "bytes": 1e8, "peak": 2e8, "first": [1.0, 1.0], "next": [0.1, 0.1]},
        {"contender": "base", "status": "ok", "bytes": 4e8, "peak": 5e8, "first": [2.0, 2.0], "next": [0.3, 0.3]},
    ]
    model = {"name": "m", "random": True, "compiled": False, "prompt": 512, "steps": 8, "group_size": 64}
    return report() | {"models": [model | {"results": results}]}


def matmuls():
    first = case(m=1, ours=[1e-3] * 3, fast=[2e-3] * 3, slow=[3e-3] * 3, base=[4e-3] * 3)
    second = case(n=64, k=128, ours=[4e-5] * 3, fast=[2e-5] * 3, base=[4e-5] * 3)
    whole = report(first, second)
    whole["measured"] = "2030-01-02 03:04 UTC"
    whole["machine"] |= {"caches": {"L2": 1 << 20}, "threads": 2}
    whole["machine"]["aoq"]["isas"] = ["amx", "avx2", "ref"]
    return whole


def test_the_tables_say_what_the_figures_say():
    text = tables.page(matmuls(), models())
    assert "| int4, x as given | **ours** | **1.00** (4.0x) |" in text
    assert "| | fast | 2.00 (2.0x) |" in text
    assert "| bf16 | base | 4.00 |" in text
    assert "| `int4_mm` | 0.50-2.00x |" in text
    assert "a CPU (amx, avx2; L2 1,024 KB), 2 threads, 2030-01-02" in text


def test_readme_has_models_in_brief():
    text, few = tables.readme_part(matmuls(), models()), models()
    assert "| m, random | ours | 100 | 512 (2.0x) | 10.0 (3.0x) |" in text and "| | base | 400 |" in text
    assert "a CPU (amx, avx2; L2 1,024 KB), 2 threads, 2030-01-02" in text
    few["models"][0]["results"] += [
        few["models"][0]["results"][0] | {"contender": name} for name in (tables.BRIEF[0], "slow")
    ]
    brief = tables.models_table(few)
    assert tables.BRIEF[0] in brief and "base" in brief  # torch's own, in whatever dtype
    assert "slow" not in brief and "slow" in tables.models_table(few, whole=True)


def test_only_what_is_between_the_markers_changes():
    readme = f"before\n{tables.BEGIN}stale\n{tables.END}after\n"
    new = tables.updated(readme, matmuls(), models())
    assert new.startswith(f"before\n{tables.BEGIN}| ") and new.endswith(f"{tables.END}after\n")
    assert "stale" not in new
    assert tables.updated(new, matmuls(), models()) == new
    with pytest.raises(ValueError):
        tables.updated("no markers", matmuls(), models())


def test_the_page_has_every_shape():
    text = tables.page(matmuls(), models())
    for wanted in ("## 4096x4096", "## 64x128", "(cpu-64x128.png)", "2.00x (2.00-2.00)", "| fast |"):
        assert wanted in text


def test_further_runs_have_a_table_of_their_own():
    text = tables.page(matmuls(), models(), {"isas": matmuls()})
    _, part = text.split("## aoq with the kernels of older machines\n")
    assert "| int4, x as given | **ours** | **1.00** (4.0x) |" in part.split("## Whole models")[0]
    assert "## int4 with" not in text and "older machines" not in tables.page(matmuls(), models())


def test_the_page_has_all_of_models():
    text = tables.page(matmuls(), models())
    assert "| m, random | ours | 100 | 200 | 1,000 | 512 (2.0x) | 10.0 (3.0x) |" in text
    assert "| peak MB of the process | ms to the first token |" in text


@needs_figures
def test_readme_and_page_are_generated():
    readme = (ROOT / "README.md").read_text()
    assert tables.updated(readme, *tables.stored()) == readme, "run scripts/benchmark_tables.py"
    page = tables.page(*tables.stored(), tables.stored_further())
    assert (tables.FOLDER / "README.md").read_text() == page, "run scripts/benchmark_tables.py"


@needs_figures
def test_the_pictures_are_there():
    report, _ = tables.stored()
    found = tables.shapes(report)
    for n, k, _ in found:
        assert (tables.FOLDER / (f"cpu-{n}x{k}.png" if len(found) > 1 else "cpu.png")).exists()
