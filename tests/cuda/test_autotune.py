"""AOQ_AUTOTUNE without a GPU: what is chosen, when it is timed, the file, several threads and processes."""

import ctypes
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from kernel_args import PackedMm, Scales, W, X
from toolchain import CXX, ROOT, cuda_home

from aoq import _C

TIME = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_int)
OFF, READ, TUNE = range(3)
EVERY = (1 << 64) - 1


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if CXX is None:
        pytest.skip("no C++ compiler")
    file = tmp_path_factory.mktemp("autotune") / "autotune.so"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", '-DAOQ_VERSION="1.2"']
    sources = [ROOT / "tests/cuda/autotune.cpp", ROOT / "csrc/autotune/autotune.cpp"]
    subprocess.run([CXX, *flags, f"-I{ROOT / 'csrc'}", *sources, "-o", file], check=True, timeout=300)
    return file


class Tuner:
    """The mechanism, with a clock: `times[config]` in ns, called with the configs that it is asked to time."""

    def __init__(self, library):
        self.functions = ctypes.CDLL(str(library))
        self.functions.set_mode.restype = ctypes.c_bool
        self.functions.tuned.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_uint64, ctypes.c_bool, TIME]
        self.timed = []

    def mode(self, value):
        """Sets AOQ_AUTOTUNE, as a new process would find it."""
        return self.functions.set_mode(value.encode())

    def __call__(self, key, times, fits=EVERY, may_time=True):
        """times: of configs 0, 1, ..., and last of the cost model's choice; or a function of the config."""

        def time(config):
            self.timed.append(config)
            return float(times(config) if callable(times) else times[config])

        configs = 4 if callable(times) else len(times) - 1
        return self.functions.tuned(key.encode(), configs, fits, may_time, TIME(time))


@pytest.fixture
def tune(library, tmp_path, monkeypatch):
    monkeypatch.setenv("AOQ_AUTOTUNE_FILE", str(tmp_path / "folder" / "tuned.json"))
    tuner = Tuner(library)
    tuner.file = tmp_path / "folder" / "tuned.json"
    assert tuner.mode("1")
    yield tuner
    tuner.mode("")


FAST2 = (90, 80, 50, 70, 100)  # config 2 is the fastest, the model's choice takes 100


def test_what_it_may_be(tune):
    for value, mode in (("", OFF), ("0", OFF), ("read", READ), ("1", TUNE)):
        assert tune.mode(value) and tune.functions.mode() == mode
    assert not tune.mode("yes") and tune.functions.mode() == TUNE, "refused, and nothing changes"
    with pytest.raises(ValueError, match="set_autotune=yes: expected 0, 1 or read"):
        _C.set_autotune("yes")
    environment = {**os.environ, "AOQ_AUTOTUNE": "yes"}
    done = subprocess.run([sys.executable, "-c", "import aoq"], env=environment, capture_output=True, text=True)
    assert done.returncode != 0 and "AOQ_AUTOTUNE=yes: expected 0, 1 or read" in done.stderr


def test_the_fastest_is_chosen_once_and_kept(tune):
    assert tune("a", FAST2) == 2 and set(tune.timed) == {-1, 0, 1, 2, 3}
    count = len(tune.timed)
    assert tune("a", FAST2) == 2 and len(tune.timed) == count
    tune.mode("1")  # a new process
    assert tune("a", (1, 1, 1, 1, 100)) == 2 and len(tune.timed) == count, "the file knows"
    assert tune("b", (90, 80, 70, 60, 100)) == 3
    assert json.loads(tune.file.read_text()) == {
        "aoq autotune": "1.2",
        "configs": {
            "a": {"config": 2, "ns": 50, "model_ns": 100},
            "b": {"config": 3, "ns": 60, "model_ns": 100},
        },
    }
    assert [path.name for path in tune.file.parent.iterdir()] == ["tuned.json"]


def test_the_cost_models_choice_stays_where_nothing_is_clearly_better(tune):
    assert tune("a", (99, 120, 99, 99, 100)) == -1
    assert json.loads(tune.file.read_text())["configs"]["a"] == {"config": -1, "ns": 100, "model_ns": 100}
    assert tune("b", (97, 120, 99, 99, 100)) == 0
    assert tune("c", (100,)) == -1, "an op whose only plan it is"


def test_a_slow_config_is_not_timed_again_and_a_slow_moment_does_not_decide(tune):
    calls = {}

    def time(config):
        calls[config] = calls.get(config, 0) + 1
        moment = 10 if calls[config] in (4, 6) and config == 1 else 1  # something else ran then
        return moment * {-1: 100, 0: 500, 1: 50, 2: 55, 3: 99}[config]

    assert tune("a", time) == 1
    assert calls[0] == calls[3] == 2, "once to load it, once to see"
    assert calls[1] == calls[2] == calls[-1] == 8
    last = tune.timed[-6:]
    assert last[:3] == last[:2:-1], "in turns, forwards and backwards"


def test_only_what_fits_is_timed_and_chosen(tune):
    assert tune("a", FAST2, fits=0b1011) == 3 and 2 not in tune.timed
    assert tune("b", FAST2) == 2
    assert tune("b", FAST2, fits=0b1011) == -1, "operands of the same problem that the file's config does not take"
    assert tune("b", (90, 80, 100)) == -1, "a number that this device has not"


def test_nothing_is_timed_where_it_must_not_be(tune):
    assert tune("a", FAST2, may_time=False) == -1
    assert not tune.timed and not tune.file.exists(), "in a capture"
    assert tune("a", FAST2) == 2
    count = len(tune.timed)
    assert tune("a", FAST2, may_time=False) == 2 and len(tune.timed) == count, "but what is known is used there"


def test_reading_never_times_or_writes(tune, capfd):
    tune.mode("read")
    assert tune("a", FAST2) == tune("b", FAST2) == -1 and not tune.timed and not tune.file.parent.exists()
    assert capfd.readouterr().err.count("tuned.json has no configs: cost models choose") == 1
    tune.mode("1")
    tune("a", FAST2)
    count, text = len(tune.timed), tune.file.read_bytes()
    tune.mode("read")
    assert tune("a", FAST2) == 2 and tune("b", FAST2) == -1
    assert len(tune.timed) == count and tune.file.read_bytes() == text and not capfd.readouterr().err


GOOD = '{"aoq autotune": "1.2", "configs": {"a": {"config": 1, "ns": 5, "model_ns": 9}}}'


def test_a_file_that_others_formatted_is_read(tune):
    tune.file.parent.mkdir()
    tune.file.write_text(json.dumps(json.loads(GOOD), indent=3))
    assert tune("a", FAST2) == 1 and not tune.timed
    tune.file.write_text(json.dumps({**json.loads(GOOD), "configs": {'a "quoted\\ one"': {"config": 3}}}))
    tune.mode("1")
    assert tune('a "quoted\\ one"', FAST2) == 3 and not tune.timed
    assert tune("a", FAST2) == 2
    assert set(json.loads(tune.file.read_text())["configs"]) == {"a", 'a "quoted\\ one"'}


@pytest.mark.parametrize(
    "text, why",
    [
        ("", "byte 0: expected {"),
        ("{}", "aoq has not written it"),
        ("[1]", "byte 0: expected {"),
        ('{"name": "x"}', '"name": aoq writes no such file'),
        (GOOD.replace("1.2", "1.1"), "aoq 1.1 has written it, this is 1.2"),
        (GOOD[:-10], "byte 70"),
        (GOOD + "x", "byte 80: more after the end"),
        (GOOD.replace(": 1,", ": one,"), "not an integer"),
        (GOOD.replace(": 1,", ": -7,"), "a: no config"),
        (GOOD.replace('"config": 1, ', ""), "a: no config"),
        (GOOD.replace('"a"', '"\\u0041"'), "an escape other than"),
        ("\0" * 64, "byte 0: expected {"),
        ('{"' + "x" * 100, "a string without an end"),
    ],
)
def test_a_broken_or_foreign_file_is_reported_once_and_left_alone(tune, capfd, text, why):
    tune.file.parent.mkdir()
    tune.file.write_text(text)
    assert tune("a", FAST2) == tune("b", FAST2) == tune("a", FAST2) == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and said.startswith("aoq: AOQ_AUTOTUNE: ") and said.count("left as it is") == 1
    assert str(tune.file) in said and why in said
    assert tune.file.read_text() == text
    tune.mode("read")
    assert tune("a", FAST2) == -1 and why in capfd.readouterr().err


def test_a_file_that_breaks_while_it_is_used(tune, capfd):
    assert tune("a", FAST2) == 2
    tune.file.write_text("{")
    assert tune("b", FAST2) == 2 and tune("c", FAST2) == 2 and tune.file.read_text() == "{"
    assert capfd.readouterr().err.count("\n") == 1


def test_a_folder_that_cannot_be_is_reported_once(tune, tmp_path, monkeypatch, capfd):
    (tmp_path / "file").touch()
    monkeypatch.setenv("AOQ_AUTOTUNE_FILE", str(tmp_path / "file" / "tuned.json"))
    tune.mode("1")
    assert tune("a", FAST2) == tune("b", FAST2) == tune("a", FAST2) == 2
    assert capfd.readouterr().err.count("\n") == 1


def test_where_the_file_is(tune, tmp_path, monkeypatch, capfd):
    monkeypatch.delenv("AOQ_AUTOTUNE_FILE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tune.mode("1")
    tune("a", FAST2)
    assert (tmp_path / "cache/aoq/autotune-1.2.json").exists() and not (tmp_path / "home").exists()
    monkeypatch.delenv("XDG_CACHE_HOME")
    tune.mode("1")
    tune("a", FAST2)
    assert (tmp_path / "home/.cache/aoq/autotune-1.2.json").exists()
    monkeypatch.delenv("HOME")
    tune.mode("1")
    assert tune("a", FAST2) == 2
    assert "no file: set AOQ_AUTOTUNE_FILE, XDG_CACHE_HOME or HOME" in capfd.readouterr().err


def test_timing_that_fails(tune, capfd):
    assert tune("a", (90, 80, -1, 70, 100)) == -1
    count = len(tune.timed)
    assert tune("a", FAST2) == -1 and len(tune.timed) == count, "not again in this process"
    assert capfd.readouterr().err.count("a: out of memory; the cost model chooses") == 1
    assert not tune.file.exists()
    assert tune("b", FAST2) == 2


def test_threads_agree(tune):
    """Two time the same problem at once, and find otherwise: both run what the first one stored."""
    both = threading.Barrier(2, timeout=60)
    chosen = {}

    def work(name, times):
        met = []

        def time(config):
            if not met:
                met.append(both.wait())
            return times[config]

        chosen[name] = tune("a", time)

    threads = [threading.Thread(target=work, args=(i, times)) for i, times in enumerate((FAST2, (10, 80, 50, 70, 100)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert chosen[0] == chosen[1] == tune("a", FAST2) == json.loads(tune.file.read_text())["configs"]["a"]["config"]


PROCESS = """
import json, random, sys
sys.path[:0] = [{tests!r}]
from test_autotune import Tuner
library, seed = sys.argv[1], int(sys.argv[2])
tune, random = Tuner(library), random.Random(seed)
keys = [f"problem {{i}}" for i in range(40)] + [f"own {{seed}}"]
random.shuffle(keys)
print(json.dumps({{key: tune(key, [random.randrange(10, 90) for _ in range(4)] + [100]) for key in keys}}))
"""


def test_processes_agree_and_lose_nothing(tune, library):
    """Each finds something else fastest; what one has written is what the others run."""
    code = PROCESS.format(tests=os.path.dirname(__file__))
    environment = {**os.environ, "AOQ_AUTOTUNE": "1"}
    processes = [
        subprocess.Popen([sys.executable, "-c", code, library, str(seed)], env=environment, stdout=subprocess.PIPE)
        for seed in range(4)
    ]
    whole = 0
    while any(process.poll() is None for process in processes):
        if tune.file.exists():
            whole += bool(json.loads(tune.file.read_text())["configs"])  # never half of it
        time.sleep(0.001)
    found = [json.loads(process.stdout.read()) for process in processes]
    assert not any(process.returncode for process in processes) and whole
    configs = {key: entry["config"] for key, entry in json.loads(tune.file.read_text())["configs"].items()}
    assert len(configs) == 44
    for answers in found:
        assert all(configs[key] == config for key, config in answers.items())


def test_a_problem_is_its_op_sizes_and_dtypes(tune):
    def key(op="int4_mm", codes="", x=None, scales=None, **fields):
        out = ctypes.create_string_buffer(400)
        of_x, of_scales = X(**{"dtype": 1, **(x or {})}), Scales(**{"dtype": 1, **(scales or {})})
        mm = PackedMm(**{"m": 5, "n": 80, "k": 256, "group": 128, "x": of_x, "w": W(scales=of_scales), **fields})
        tune.functions.key_of(op.encode(), ctypes.byref(mm), codes.encode(), out, len(out))
        return out.value.decode()

    assert key() == "int4_mm on a device: m <= 8, n 80, k 256, group 128, x bf16, scale bf16"
    assert key(m=1) == key().replace("8,", "1,", 1) and key(m=6) == key(m=8) == key()
    assert key(m=9) != key() and key(m=1 << 40).count(f"m <= {1 << 40}")
    others = [dict(op="int8_int4_mm"), dict(n=81), dict(k=512), dict(group=64), dict(group=256), dict(x=dict(dtype=0))]
    others += [dict(scales=dict(dtype=2)), dict(scales=dict(zero_point=1)), dict(x=dict(asymmetric=True))]
    others += [dict(codes="e5m2")]
    keys = {key(**changed) for changed in others}
    assert len(keys) == len(others) and key() not in keys


def test_every_op_with_a_config_asks():
    entries = [path.read_text() for path in ROOT.glob("csrc/ops/*/*mm_cuda.cpp")]
    assert len(entries) >= 6 and all("mm_on_cuda(" in text or "AOQ_MM_CUDA_OP(" in text for text in entries)
    assert "mm_on_cuda(" in (ROOT / "csrc/mm/cuda/mm_op.h").read_text()
    for kernels in ("nibble", "weight", "dense"):
        assert "run_config(" in (ROOT / f"csrc/mm/cuda/{kernels}_mm_entry.h").read_text()


# ---- on the device: autotune/autotune_cuda.cpp, on a CUDA that notes what it is asked for


@pytest.fixture(scope="module")
def on_device(tmp_path_factory):
    cuda = cuda_home()
    if CXX is None or cuda is None:
        pytest.skip("CUDA's headers are not installed")
    torch_home = Path(torch.__file__).parent
    library = tmp_path_factory.mktemp("autotune_cuda") / "autotune_cuda.so"
    flags = ["-std=c++17", "-O0", "-Wall", "-Wextra", "-Werror", "-Wno-attributes", "-fPIC", "-shared"]
    flags += ['-DAOQ_VERSION="1.2"', "-DUSE_CUDA"]
    flags += ["-DTORCH_TARGET_VERSION=0x020a000000000000ULL", f"-I{ROOT / 'csrc'}"]
    api = torch_home / "include/torch/csrc/api/include"
    flags += [f"-isystem{path}" for path in (torch_home / "include", api, cuda / "include", cuda / "include/cccl")]
    sources = [ROOT / "tests/cuda/autotune_cuda.cpp"]
    sources += [ROOT / "csrc" / name for name in ("autotune/autotune.cpp", "autotune/autotune_cuda.cpp", "cuda/sm.cpp")]
    libraries = [torch_home / "lib/libtorch_cpu.so", f"-Wl,-rpath,{torch_home / 'lib'}"]
    subprocess.run([CXX, *flags, *sources, *libraries, "-o", library], check=True, timeout=600)
    return ctypes.CDLL(str(library))


@pytest.fixture
def tune_on_device(on_device, tmp_path, monkeypatch):
    monkeypatch.setenv("AOQ_AUTOTUNE_FILE", str(tmp_path / "tuned.json"))
    on_device.mode(b"1")

    def tune(m=1, capturing=False, error=False, sm=""):
        out = ctypes.create_string_buffer(1 << 16)
        config = on_device.tuned(ctypes.c_int64(m), capturing, error, sm.encode(), out, ctypes.c_size_t(len(out)))
        return config, out.value.decode().split()

    return tune


def test_each_call_is_timed_from_memory_and_nothing_is_left(tune_on_device, tmp_path):
    config, calls = tune_on_device()
    assert config == 1
    assert calls[:3] == ["relax", "create", "create"] and calls[-3:] == ["destroy", "destroy", "restore"]
    turns = [calls[i : i + 5] for i in range(3, len(calls) - 3, 5)]
    assert all([*turn[:2], *turn[3:]] == ["flush:8192", "record", "record", "wait"] for turn in turns)
    assert [turn[2] for turn in turns[:4]] == ["run:-1", "run:0", "run:1", "run:2"]
    assert tune_on_device() == (1, []), "known"
    (key,) = json.loads((tmp_path / "tuned.json").read_text())["configs"]
    wanted = r"an_op on A GPU, 132 multiprocessors, kernels [0-9a-f]{8}: m <= 1, n 64, k 64, x fp32, scale fp32"
    assert re.fullmatch(wanted, key)


def test_nothing_is_timed_in_a_capture(tune_on_device, tmp_path):
    assert tune_on_device(capturing=True) == (-1, [])
    assert tune_on_device(error=True) == (-1, ["forget"]), "the default stream, while another is captured"
    assert not (tmp_path / "tuned.json").exists()
    assert tune_on_device()[0] == 1 and tune_on_device(capturing=True) == (1, [])


def test_other_kernels_are_another_problem(tune_on_device, tmp_path):
    assert tune_on_device(m=5)[1] and not tune_on_device(m=8)[1] and tune_on_device(m=9)[1]
    assert tune_on_device(m=8, sm="sm80")[1], "AOQ_SM: a config's number means another kernel"
    assert len(json.loads((tmp_path / "tuned.json").read_text())["configs"]) == 3
