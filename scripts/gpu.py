"""What `make gpu` does on a machine with a CUDA device: from a first launch of each kind of kernel to figures.

Stages, each on what the ones before it have shown, with a share of the time; `--only` chooses among them:

probe     the driver, how many clusters fit, one launch of each family of kernels in a process of its own
tests     tests/gpu, one file a process: each architecture's kernels by themselves, one launch at a time, then all
sanitize  compute-sanitizer, memory before races, of few rows and of many
ops       figures of the ops, at first of one shape
profile   what ncu says of the kernels that matter most
models    figures of whole models: with what else there is they do not fit ten minutes, so only where asked for

A fault takes its process's device with it and a hang its names, so all is in small processes with limits, and is
printed and written (`--out`, build/gpu by default) as it comes: what is cut short keeps what it had.

Needs a Python with a torch built for CUDA, pytest and what aoq depends on; any torch >= 2.10. Whole models also need
transformers. Takes the wheel in build/wheel (`make wheel`, on any machine with nvcc: one for every Python and torch) or
else builds the checkout.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SITE = ROOT / "build" / "gpu" / "site"


def why_not() -> str:
    """Why nothing can run here, or nothing."""
    try:
        import torch
    except ImportError:
        return f"{sys.executable} has no torch"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    return "" if torch.cuda.is_available() else "torch finds no CUDA device"


def has_cuda(wheel: Path) -> bool:
    with zipfile.ZipFile(wheel) as files:
        return "aoq/libaoq_cuda.so" in files.namelist()


def install(wheel: Path | None) -> str:
    """Puts aoq into SITE; what it was made from."""
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--upgrade", "--quiet", "--target", str(SITE)]
    if wheel is not None:
        subprocess.run([*pip, str(wheel)], check=True)
        return str(wheel)
    build = [f"build-dir={SITE.with_name('cmake')}", "cmake.define.AOQ_CUDA=ON"]
    if importlib.util.find_spec("cutlass_library") is None:  # without it, what is made with CUTLASS is left out
        headers = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "nvidia-cutlass==4.2.0.0"]
        subprocess.run(headers, check=False)
    subprocess.run([*pip, "--no-build-isolation", *(f"-C{option}" for option in build), str(ROOT)], check=True)
    return "this checkout"


# Of the time that is left when a stage begins; the last takes all.
SHARES = {"probe": 0.2, "tests": 0.5, "sanitize": 0.4, "ops": 0.7, "profile": 0.5, "models": 1.0}
DEFAULT = [stage for stage in SHARES if stage != "models"]


def budgets(stages: Sequence[str], left: float) -> dict[str, float]:
    """Seconds for each stage if those before it use all of theirs."""
    found = {}
    for stage in stages:
        found[stage] = left * (1.0 if stage == stages[-1] else SHARES[stage])
        left -= found[stage]
    return found


def run(
    command: Sequence[str], environment: Mapping[str, str], seconds: float, grace: float = 20, log: Path | None = None
) -> int | None:
    """The exit status; None where it was interrupted, as Ctrl-C would, after `seconds`, and killed `grace` later.

    log: where it writes, instead of here.
    """
    with log.open("wb") if log else contextlib.nullcontext() as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, start_new_session=True, stdout=file, stderr=file and subprocess.STDOUT
        )
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # pytest and the benchmarks write what they have
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return None


# ---- probe

PROBE_SECONDS = 20  # of each process; most of it is torch's
BLOCKING = {"CUDA_LAUNCH_BLOCKING": "1"}
WITHOUT_PDL = {"AOQ_PDL": "0"}


def run_probe(environment: Mapping[str, str], seconds: float, out: Path) -> dict[str, object]:
    """Goes on after a family that fails: which ones do is what the next stages are read by."""
    end, found = time.monotonic() + seconds, dict[str, object]()
    names = subprocess.run([sys.executable, "tests/gpu/probe.py"], cwd=ROOT, env=environment, stdout=subprocess.PIPE)
    for name in names.stdout.decode().split():
        left = end - time.monotonic()
        if left < 5:
            found[name] = "not reached"
            continue
        log = out / f"probe-{name}.log"
        command = [sys.executable, "tests/gpu/probe.py", name]
        code = run(command, {**environment, **BLOCKING}, min(PROBE_SECONDS, left), grace=2, log=log)
        lines = log.read_text(errors="replace").splitlines() or [""]
        found[name] = lines[-1] if code == 0 else f"FAILED ({'hung' if code is None else code}): {lines[-1]}"
        print(f"{name}: {found[name]}", flush=True)
    failed = [name for name, text in found.items() if str(text).startswith(("FAILED", "not reached"))]
    return {"passed": bool(found) and not failed, **found}


# ---- tests


@dataclass(frozen=True)
class Pass:
    """Tests that are run alike: those that pytest's -k and -m select."""

    name: str
    names: str
    marks: str
    environment: Mapping[str, str] = field(default_factory=dict)


# The plainest instructions first. A launch that blocks is the one that an error names.
PASSES = (
    *(Pass(sm, sm, "not queued", BLOCKING | WITHOUT_PDL) for sm in ("sm80", "sm89", "sm90a")),
    Pass("sm90a-pdl", "sm90a", ""),
    Pass("any", "not sm80 and not sm89 and not sm90a", ""),
    Pass("queued", "sm80 or sm89", "queued"),
)
FIRST = ("test_int4_packing", "test_decoding", "test_every_op")  # each op once, before the many cases of one
LAST = ("test_autotune",)
SANITIZER = "test_sanitizer"
FILE_SECONDS = 90.0
# Only these: the suite's own settings and conftest.py ask for more than a GPU machine may have.
PYTEST = ("-m", "pytest", "-x", "-v", "-rfE", "-p", "no:cacheprovider", "-c", os.devnull)
FOLDERS = ("--rootdir", "tests/gpu", "--confcutdir", "tests/gpu")


def stems_in_order() -> list[str]:
    """The stems of tests/gpu, in the order in which they run, but for the sanitizer's."""
    stems = sorted(file.stem for file in (ROOT / "tests/gpu").glob("test_*.py"))
    others = [stem for stem in stems if stem not in (*FIRST, *LAST, SANITIZER)]
    return [*FIRST, *others, *LAST]


def pytest_command(stem: str, names: str, marks: str, report: Path | None = None) -> list[str]:
    command = [sys.executable, *PYTEST, *FOLDERS, "-k", names]
    command += ["-m", marks] if marks else []
    command += [f"--junitxml={report}"] if report else []
    return [*command, f"tests/gpu/{stem}.py"]


def counts_of(report: Path) -> dict[str, int]:
    """How many tests, failed, errors and skipped a report has, if it was written."""
    names = {"tests": "tests", "failures": "failed", "errors": "errors", "skipped": "skipped"}
    if not report.exists():
        return dict.fromkeys(names.values(), 0)
    counts = next(iter(ET.parse(report).getroot())).attrib
    return {name: int(counts[key]) for key, name in names.items()}


def running(log: str) -> str:
    """The test that a log of pytest -v ends in."""
    begun = [line.split()[0] for line in log.splitlines() if line.startswith("tests/gpu/") or ".py::" in line]
    return begun[-1] if begun else "none yet"


def run_files(
    todo: Iterator[tuple[str, list[str], Mapping[str, str], float]], seconds: float, out: Path
) -> dict[str, object]:
    """Each (name, command without its report, environment, limit) in a process of its own."""
    end, failures, not_reached, total = time.monotonic() + seconds, dict[str, str](), list[str](), dict[str, int]()
    for name, command, environment, limit in todo:
        left = end - time.monotonic()
        if left < 5:
            not_reached.append(name)
            continue
        log, report = out / f"{name}.log", out / f"{name}.xml"
        report.unlink(missing_ok=True)
        code = run([*command, f"--junitxml={report}"], environment, min(limit, left), log=log)
        text = log.read_text(errors="replace")
        for what, count in counts_of(report).items():
            total[what] = total.get(what, 0) + count
        if code == 5:  # none is selected here
            continue
        if code != 0:
            why = f"not done after {min(limit, left):.0f} s" if code is None else f"exit {code}"
            failures[name] = f"{why}, in {running(text)}"
            print(text[-6000:], flush=True)
        last = (text.splitlines() or [""])[-1].strip("= ")
        print(f"{name}: {failures.get(name, last)}", flush=True)
    found: dict[str, object] = {"passed": not failures and not not_reached, **total}
    return found | ({"failures": failures} if failures else {}) | ({"not_reached": not_reached} if not_reached else {})


def run_tests(environment: Mapping[str, str], seconds: float, out: Path) -> dict[str, object]:
    """Each pass through all files; a file that fails ends its own process alone."""
    todo = (
        (f"{a.name}-{stem}", pytest_command(stem, a.names, a.marks), {**environment, **a.environment}, FILE_SECONDS)
        for a in PASSES
        for stem in stems_in_order()
    )
    return run_files(todo, seconds, out)


SANITIZED = tuple((tool, rows) for tool in ("memcheck", "racecheck") for rows in ("m5", "m300"))


def run_sanitizer(environment: Mapping[str, str], seconds: float, out: Path) -> dict[str, object]:
    todo = (
        (f"{tool}-{rows}", pytest_command(SANITIZER, f"{tool} and {rows}", ""), environment, seconds)
        for tool, rows in SANITIZED
    )
    return run_files(todo, seconds, out)


# ---- figures

FIRST_FIGURES = ("--shapes", "8192x8192", "--m", "1", "16", "1024")


def run_ops(environment: Mapping[str, str], seconds: float, out: Path) -> dict[str, object]:
    # What is left of a case that began in time is finished.
    command = [sys.executable, "benchmarks/cuda.py", "--out", str(out), *FIRST_FIGURES]
    return ended(run([*command, "--minutes", f"{0.85 * seconds / 60:.2f}"], environment, seconds))


PROFILED = ("int4_mm_skinny_sm90a", "int4_mm_wgmma")  # of tests/gpu/probe.py


def run_profile(environment: Mapping[str, str], seconds: float, out: Path) -> dict[str, object]:
    ncu = shutil.which("ncu") or shutil.which("ncu", path="/usr/local/cuda/bin")
    if ncu is None:
        return {"passed": True, "why": "ncu is not installed"}
    found: dict[str, object] = {"passed": True}
    for name in PROFILED:
        command = [ncu, "--set", "full", "--kernel-name", "regex:multiply", "--launch-count", "1", "--page", "details"]
        command += [sys.executable, "tests/gpu/probe.py", name, "--size", "8192"]
        found[name] = answer = ended(run(command, environment, seconds / len(PROFILED), log=out / f"ncu-{name}.txt"))
        found["passed"] = bool(found["passed"] and answer["passed"])
    return found


def run_models(environment: Mapping[str, str], seconds: float, out: Path, models: Sequence[str]) -> dict[str, object]:
    """Each model in a process of its own, with what is left of the time: what is done is kept."""
    found: dict[str, object] = {"passed": True}
    end = time.monotonic() + seconds
    for i, model in enumerate(models):
        left = (end - time.monotonic()) / (len(models) - i)
        command = [
            sys.executable,
            "-m",
            "aoq",
            "bench",
            "--device",
            "cuda",
            "--random-model",
            model,
            "--compile",
            "--only",
            "aoq",
        ]
        command += ["--minutes", f"{0.9 * left / 60:.2f}", "--json", str(out / f"{model}.json")]
        found[model] = answer = ended(run(command, environment, left))
        found["passed"] = bool(found["passed"] and answer["passed"])
    return found


def ended(code: int | None) -> dict[str, object]:
    return {"passed": code == 0, **({"why": "cut short: its time was up"} if code is None else {"exit": code})}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, help="by default that in build/wheel, if CUDA is in it")
    parser.add_argument("--minutes", type=float, default=9, help="for all of it, building included")
    parser.add_argument("--only", nargs="+", choices=list(SHARES), default=DEFAULT, help="which stages")
    parser.add_argument("--out", type=Path, default=SITE.parent, help="where everything is written")
    parser.add_argument("--models", nargs="+", default=["llama-3.1-8b", "smollm2-135m", "llama-3.2-1b"])
    args = parser.parse_args()
    stages = [stage for stage in SHARES if stage in args.only]
    start = time.monotonic()
    reason = why_not()
    if reason:
        sys.exit(f"make gpu: needs a CUDA device: {reason}")
    import torch

    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    wheels = [file for file in (ROOT / "build/wheel").glob("aoq-*.whl") if has_cuda(file)]
    source = install(args.wheel or (wheels[0] if wheels else None))
    path = os.pathsep.join([str(SITE), *filter(None, [os.environ.get("PYTHONPATH")])])  # peers may be in it
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    summary: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "aoq": source,
        "installed_s": round(time.monotonic() - start, 1),
    }

    def write() -> None:
        (out / "gpu.json").write_text(json.dumps(summary, indent=2) + "\n")
        lines = [f"- {name}: {value}" for name, value in summary.items()]
        (out / "gpu.md").write_text("# make gpu\n\n" + "\n".join(lines) + "\n")

    write()
    print(json.dumps(summary, indent=2), flush=True)
    subprocess.run([sys.executable, "-m", "aoq"], env=environment)
    for i, stage in enumerate(stages):
        seconds = budgets(stages[i:], args.minutes * 60 - (time.monotonic() - start))[stage]
        print(f"\n==== {stage}, at most {seconds:.0f} s", flush=True)
        runs = {
            "probe": run_probe,
            "tests": run_tests,
            "sanitize": run_sanitizer,
            "ops": run_ops,
            "profile": run_profile,
            "models": partial(run_models, models=args.models),
        }
        summary[stage] = runs[stage](environment, seconds, out)
        summary[f"{stage}_end_s"] = round(time.monotonic() - start, 1)
        write()
    print(json.dumps(summary, indent=2), flush=True)
    sys.exit(0 if all(summary[stage]["passed"] for stage in stages) else 1)


if __name__ == "__main__":
    main()
