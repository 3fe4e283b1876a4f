"""What `make gpu` does on a machine with a CUDA device: aoq's GPU tests, then its benchmark, in under ten minutes.

Needs a Python with a torch built for CUDA, pytest and what aoq depends on; any torch >= 2.10. Takes the wheel in
build/wheel (`make wheel`, on any machine with nvcc: one for every Python and torch) or else builds the checkout.
Everything is printed and written as it comes, under build/gpu: what is cut short keeps what it had.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
import zipfile
from pathlib import Path

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


def run_tests(environment: dict[str, str], seconds: float) -> dict[str, object]:
    report = OUT / "tests.xml"
    report.unlink(missing_ok=True)
    # Only these: the suite's own settings ask for more than a GPU machine may have.
    options = ["-q", "-rfE", "--durations=5", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", "tests/gpu"]
    command = [sys.executable, "-m", "pytest", *options, f"--junitxml={report}", "tests/gpu"]
    try:
        code = subprocess.run(command, cwd=ROOT, env=environment, timeout=seconds).returncode
    except subprocess.TimeoutExpired:
        return {"passed": False, "why": f"not done after {seconds:.0f} s"}
    if not report.exists():
        return {"passed": False, "why": f"pytest exited with {code}"}
    counts = next(iter(ET.parse(report).getroot())).attrib
    return {"passed": code == 0, **{name: int(counts[name]) for name in ("tests", "failures", "errors", "skipped")}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, help="by default that in build/wheel, if CUDA is in it")
    parser.add_argument("--minutes", type=float, default=9, help="for all of it, building included")
    parser.add_argument("--no-tests", action="store_true")
    parser.add_argument("--no-benchmark", action="store_true")
    args = parser.parse_args()
    start = time.monotonic()
    reason = why_not()
    if reason:
        sys.exit(f"make gpu: needs a CUDA device: {reason}")
    import torch

    OUT.mkdir(parents=True, exist_ok=True)
    wheels = [file for file in (ROOT / "build/wheel").glob("aoq-*.whl") if has_cuda(file)]
    source = install(args.wheel or (wheels[0] if wheels else None))
    environment = {**os.environ, "PYTHONPATH": str(SITE), "PYTHONUNBUFFERED": "1"}
    summary = {
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
    subprocess.run([sys.executable, "-m", "aoq"], env=environment, check=True)
    left = args.minutes * 60 - (time.monotonic() - start)
    if not args.no_tests:
        summary["tests"] = run_tests(environment, left if args.no_benchmark else left / 2)
        summary["tested_s"] = round(time.monotonic() - start, 1)
        write()
    if not args.no_benchmark:
        left = args.minutes * 60 - (time.monotonic() - start)
        command = [sys.executable, "benchmarks/cuda.py", "--out", str(OUT), "--minutes", f"{left / 60:.2f}"]
        summary["benchmark_exit"] = subprocess.run(command, cwd=ROOT, env=environment).returncode
    summary["total_s"] = round(time.monotonic() - start, 1)
    write()
    print(json.dumps(summary, indent=2), flush=True)
    passed = args.no_tests or summary["tests"]["passed"]  # type: ignore[index]
    sys.exit(0 if passed and not summary.get("benchmark_exit") else 1)


if __name__ == "__main__":
    main()
