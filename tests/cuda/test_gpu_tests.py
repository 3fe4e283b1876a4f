"""The tests that wait for a GPU, run on the CPU's kernels: one that fails there is wrong itself."""

import os
import re
import subprocess
import sys

from toolchain import ROOT

# What is quick and holds on any device; (17, 40) is a ragged shape in each file.
SELECTED = (
    "test_decoding and (bfloat16 or fp8)",
    "test_every_op and (agrees or same_bits)",
    "awkward and 17",
    "any_rank or any_stride or infinity or (not_finite and not packing)",
    "test_mm and (experts or own_op)",
)


def test_they_pass_on_the_cpu():
    options = ["-q", "-x", "-p", "no:cacheprovider", "-c", os.devnull]
    options += [
        "--rootdir",
        "tests/gpu",
        "--confcutdir",
        "tests/gpu",
        "-k",
        " or ".join(f"({one})" for one in SELECTED),
    ]
    command = [sys.executable, "-m", "pytest", *options, "tests/gpu"]
    # By reference: vector kernels may round decoded weights to bf16, which a GPU's do not.
    environment = {**os.environ, "AOQ_GPU_TESTS_ON": "cpu", "AOQ_ISA": "ref"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 60, done.stdout
