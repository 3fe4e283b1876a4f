"""What `make gpu` does on a machine with a CUDA device: aoq's GPU tests, then figures of its ops and of whole models.

All in under ten minutes. `--only` chooses among these stages; each has a share of the time, and the later ones what is
left.

Needs a Python with a torch built for CUDA, pytest and what aoq depends on; any torch >= 2.10. Whole models also need
transformers. Takes the wheel in build/wheel (`make wheel`, on any machine with nvcc: one for every Python and torch) or
else builds the checkout. Everything is printed and written as it comes, under build/gpu: what is cut short keeps what
it had.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OUT = ROOT / "build" / "gpu"
SITE = OUT / "site"


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
    build = [f"build-dir={OUT / 'cmake'}", "cmake.define.AOQ_CUDA=ON"]
    if importlib.util.find_spec("cutlass_library") is None:  # without it, what is made with CUTLASS is left out
        headers = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "nvidia-cutlass==4.2.0.0"]
        subprocess.run(headers, check=False)
    subprocess.run([*pip, "--no-build-isolation", *(f"-C{option}" for option in build), str(ROOT)], check=True)
    return "this checkout"


# Of the time that is left when a stage begins; the last takes all.
SHARES = {"tests": 0.35, "ops": 0.6, "models": 1.0}


def budgets(stages: Sequence[str], left: float) -> dict[str, float]:
    """Seconds for each stage if those before it use all of theirs."""
    found = {}
    for stage in stages:
        found[stage] = left * (1.0 if stage == stages[-1] else SHARES[stage])
        left -= found[stage]
    return found


def run(command: Sequence[str], environment: Mapping[str, str], seconds: float, grace: float = 20) -> int | None:
    """The exit status; None where it was interrupted, as Ctrl-C would, after `seconds`, and killed `grace` later."""
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
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


def run_tests(environment: Mapping[str, str], seconds: float) -> dict[str, object]:
    """Every op first, then each by itself, compute-sanitizer last: it is slowest."""
    report = OUT / "tests.xml"
    report.unlink(missing_ok=True)
    # Only these: the suite's own settings ask for more than a GPU machine may have.
    options = ["-q", "-rfE", "--durations=5", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", "tests/gpu"]
    files = sorted((ROOT / "tests/gpu").glob("test_*.py"), key=lambda file: (TEST_ORDER.get(file.stem, 1), file.name))
    tests = [str(file.relative_to(ROOT)) for file in files]
    code = run([sys.executable, "-m", "pytest", *options, f"--junitxml={report}", *tests], environment, seconds)
    found: dict[str, object] = {"passed": code == 0}
    if code is None:
        found["why"] = f"not done after {seconds:.0f} s"
    if not report.exists():
        return {"why": f"pytest exited with {code}", **found}
    counts = next(iter(ET.parse(report).getroot())).attrib
    return found | {name: int(counts[name]) for name in ("tests", "failures", "errors", "skipped")}


TEST_ORDER = {"test_every_op": 0, "test_sanitizer": 2}


def run_ops(environment: Mapping[str, str], seconds: float) -> dict[str, object]:
    # What is left of a case that began in time is finished.
    command = [sys.executable, "benchmarks/cuda.py", "--out", str(OUT), "--minutes", f"{0.85 * seconds / 60:.2f}"]
    return ended(run(command, environment, seconds))


def run_models(environment: Mapping[str, str], seconds: float, models: Sequence[str]) -> dict[str, object]:
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
        command += ["--minutes", f"{0.9 * left / 60:.2f}", "--json", str(OUT / f"{model}.json")]
        found[model] = answer = ended(run(command, environment, left))
        found["passed"] = bool(found["passed"] and answer["passed"])
    return found


def ended(code: int | None) -> dict[str, object]:
    return {"passed": code == 0, **({"why": "cut short: its time was up"} if code is None else {"exit": code})}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, help="by default that in build/wheel, if CUDA is in it")
    parser.add_argument("--minutes", type=float, default=9, help="for all of it, building included")
    parser.add_argument("--only", nargs="+", choices=list(SHARES), default=list(SHARES), help="which stages")
    parser.add_argument("--models", nargs="+", default=["llama-3.1-8b", "smollm2-135m", "llama-3.2-1b"])
    args = parser.parse_args()
    stages = [stage for stage in SHARES if stage in args.only]
    start = time.monotonic()
    reason = why_not()
    if reason:
        sys.exit(f"make gpu: needs a CUDA device: {reason}")
    import torch

    OUT.mkdir(parents=True, exist_ok=True)
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
        (OUT / "gpu.json").write_text(json.dumps(summary, indent=2) + "\n")
        lines = [f"- {name}: {value}" for name, value in summary.items()]
        (OUT / "gpu.md").write_text("# make gpu\n\n" + "\n".join(lines) + "\n")

    write()
    print(json.dumps(summary, indent=2), flush=True)
    subprocess.run([sys.executable, "-m", "aoq"], env=environment)
    for i, stage in enumerate(stages):
        seconds = budgets(stages[i:], args.minutes * 60 - (time.monotonic() - start))[stage]
        print(f"\n==== {stage}, at most {seconds:.0f} s", flush=True)
        if stage == "tests":
            summary[stage] = run_tests(environment, seconds)
        elif stage == "ops":
            summary[stage] = run_ops(environment, seconds)
        else:
            summary[stage] = run_models(environment, seconds, args.models)
        summary[f"{stage}_end_s"] = round(time.monotonic() - start, 1)
        write()
    print(json.dumps(summary, indent=2), flush=True)
    sys.exit(0 if all(summary[stage]["passed"] for stage in stages) else 1)


if __name__ == "__main__":
    main()
