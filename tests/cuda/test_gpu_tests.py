"""The tests that wait for a GPU, run on the CPU's kernels: one that fails there is wrong itself."""

import os
import subprocess
import sys

from toolchain import ROOT

# Of each file what is quick and holds on any device.
SELECTED = {
    "test_decoding.py": "bfloat16 or fp8_is_exact",
    "test_every_op.py": "same_bits and without_pdl or agrees",
    "test_int4_mm.py": "awkward and 8 and symmetric or any_rank",
    "test_int8_int4_mm.py": "awkward and 40 and not 1000 or any_stride or infinity",
    "test_weight_mm.py": "any_stride or (5, 7)",
    "test_dense_mm.py": "awkward and (5, 7) or not_finite",
}


def test_they_pass_on_the_cpu():
    files = [f"tests/gpu/{name}" for name in SELECTED]
    options = ["-q", "-x", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", "tests/gpu"]
    options += ["--confcutdir", "tests/gpu"]
    environment = {**os.environ, "AOQ_GPU_TESTS_ON": "cpu"}
    for file, names in zip(files, SELECTED.values(), strict=True):
        command = [sys.executable, "-m", "pytest", *options, "-k", names.replace("(5, 7)", "5 and 7"), file]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
        assert int(done.stdout.split(" passed")[0].split()[-1]) >= 2, done.stdout
