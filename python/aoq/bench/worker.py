"""A process that serves one contender, or the machine's limits: commands and answers are lines of JSON.

It runs in any Python that has torch and the peer: the package is loaded by path, under the name `aoq_bench`.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.metadata
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .contender import Problem, cold_copies, some_of, wrongness
from .contenders import contenders_in
from .device_stand import DeviceStand
from .probe import Gate, Probe

Answer = dict[str, Any]

# What `process.Worker` runs, with the package's directory, a server's name and its arguments.
BOOT = """
import importlib.util, sys
name, where = "aoq_bench", sys.argv[1]
spec = importlib.util.spec_from_file_location(name, where + "/__init__.py", submodule_search_locations=[where])
sys.modules[name] = importlib.util.module_from_spec(spec)
importlib.import_module(name + ".worker").main(*sys.argv[2:])
"""


class Limits:
    """Serves what the machine can do."""

    def __init__(self, threads: int, library: str, cold_bytes: int) -> None:
        torch.set_num_threads(threads)
        self.probe = Probe(threads, Path(library))
        self.memory = torch.ones(cold_bytes // 8, dtype=torch.int64)

    def hello(self) -> Answer:
        return {"instructions": self.probe.instructions}

    def turn(self) -> Answer:
        """bandwidth in bytes a second, peaks in operations a second, and the gate for this round's samples."""
        gate = self.probe.gate()
        return {
            "bandwidth": self.probe.bandwidth(self.memory),
            "peaks": {instruction: self.probe.peak(instruction) for instruction in self.probe.instructions},
            "gate": vars(gate),
        }


class Stand:
    """Serves a contender: `prepare` a weight, `check` an m, then `turn` after turn."""

    def __init__(self, threads: int, library: str, cold_bytes: int, file: str, contender: str) -> None:
        torch.set_num_threads(threads)
        self.cold_bytes = cold_bytes
        self.contender = contenders_in(Path(file))[contender](threads)
        self.probe = Probe(threads, Path(library))
        self.calls = 0

    def hello(self) -> Answer:
        return {"version": importlib.metadata.version(self.contender.package), "torch": torch.__version__}

    def prepare(self, n: int, k: int, group_size: int) -> Answer:
        self.weights: list[Any] = []
        self.problem = Problem(n, k, group_size)
        weight = self.contender.weight(self.problem)
        self.columns = some_of(n, 1024)
        self.exact = self.contender.exact(self.problem, weight, self.columns)
        self.problem.forget()
        nbytes = self.contender.nbytes(weight)
        copies = cold_copies(nbytes, self.cold_bytes)
        self.weights = [weight, *(self.contender.another(weight) for _ in range(copies - 1))]
        return {"bytes": nbytes, "copies": copies}

    def _call(self, x: Any) -> Any:
        self.calls += 1
        return self.contender.multiply(x, self.weights[self.calls % len(self.weights)])

    def check(self, m: int) -> Answer:
        """How wrong the contender is, 1 being the limit, by some of a product."""
        x = self.problem.x(m)
        given = self.contender.prepare(x)
        for _ in self.weights if self.contender.prepares else ():
            self._call(given)
        out = self.contender.output(self._call(given))
        if out.shape != (m, self.problem.n):
            raise ValueError(f"returned {tuple(out.shape)}, expected {(m, self.problem.n)}")
        rows = some_of(m, 64)
        return {"wrongness": wrongness(self.contender, x[rows], self.exact, out[rows][:, self.columns])}

    def turn(self, m: int, seconds: float, gate: dict[str, Any]) -> Answer:
        """The median of `seconds` of calls that began and ended in a quiet moment, each on another weight.

        Gives up after four times as long: `quiet` of `calls` then is 0, and the median that of all.
        """
        quiet = Gate(**gate)
        x = self.contender.prepare(self.problem.x(m))
        for _ in range(2):
            self._call(x)
        kept: list[float] = []
        taken: list[float] = []
        begun = time.perf_counter()
        before = self.probe.moment(quiet.iterations)
        while not taken or (sum(kept) < seconds and time.perf_counter() - begun < 4 * seconds):
            start = time.perf_counter()
            self._call(x)
            taken.append(time.perf_counter() - start)
            after = self.probe.moment(quiet.iterations)
            if max(before, after) <= quiet.seconds:
                kept.append(taken[-1])
            before = after
        return {"seconds": statistics.median(kept or taken), "calls": len(taken), "quiet": len(kept)}


class ModelStand:
    """Serves a whole language model: `load` it, then `turn` after turn."""

    def __init__(self, threads: int, file: str, contender: str, device: str = "cpu") -> None:
        torch.set_num_threads(threads)
        self.contender = contenders_in(Path(file))[contender](threads, device)
        self.device = torch.device(device)
        self.caches: dict[int, Any] = {}
        self.keeps_caches = device == "cuda"  # their addresses are in its graphs

    def hello(self) -> Answer:
        import transformers

        version = importlib.metadata.version(self.contender.package)
        return {"version": version, "torch": torch.__version__, "transformers": transformers.__version__}

    # Parameters that are inference tensors ask for no gradients, and linear then copies the head at every prompt.
    @torch.inference_mode(False)
    def load(self, source: str, group_size: int, compiled: bool, dtype: str = "bfloat16") -> Answer:
        """Every linear but the head quantized; without weights in the directory, random ones.

        Args:
            dtype: of what is not quantized, unless the contender has its own.
        """
        from transformers import AutoConfig, AutoModelForCausalLM
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        torch.manual_seed(0)
        wanted: Any = getattr(torch, self.contender.model_dtype or dtype)
        model: Any
        if any(Path(source).glob("*.safetensors")):
            model = AutoModelForCausalLM.from_pretrained(source, dtype=wanted)
            model = model.to(self.device)
        else:
            with self.device:
                model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source), dtype=wanted)
        head = model.get_output_embeddings()
        self.contender.quantize_model(
            model, lambda module, name: isinstance(module, torch.nn.Linear) and module is not head, group_size
        )
        for param in model.parameters():
            if not hasattr(param, "__tensor_flatten__") and not param.is_cuda:
                param.data = param.data.clone()  # or the whole file stays mapped, and counts as memory
        self.model, self.compiled = model.eval(), compiled
        self.read: Any = torch.compile(model, dynamic=False) if compiled else model
        # On CUDA a step is shorter than its launches, so it is a graph.
        graphs = compiled and self.device.type == "cuda"
        self.write = torch.compile(model, dynamic=False, mode="reduce-overhead") if graphs else self.read
        parts = [part for param in model.parameters() for part in _parts(param)]
        nbytes = sum(part.nbytes for part in {part.data_ptr(): part for part in parts}.values())
        self.forget_peak()
        return {"bytes": nbytes, "parameters": sum(param.numel() for param in model.parameters())}

    def turn(self, prompt: int, steps: int) -> Answer:
        """Seconds to the first token after `prompt` tokens, and of each of the `steps` tokens after that."""
        from transformers import DynamicCache

        config = self.model.config
        cache: Any = self.static_cache(prompt + steps) if self.compiled else DynamicCache(config=config)
        most = min(config.vocab_size, 30_000)
        ids = torch.randint(most // 20, most, (1, prompt), generator=torch.Generator().manual_seed(0)).to(self.device)
        positions = torch.arange(prompt + steps, device=self.device)[None]

        def next_token(forward: Any, ids: torch.Tensor, start: int) -> tuple[torch.Tensor, torch.Tensor]:
            at = positions[:, start : start + ids.shape[1]].clone()
            if self.device.type == "cuda":
                torch.compiler.cudagraph_mark_step_begin()  # what the step before returned is not used any more
            out = forward(input_ids=ids, position_ids=at, past_key_values=cache, use_cache=True, logits_to_keep=1)
            return out.logits, out.logits[:, -1:].argmax(-1)

        begun = self.now()
        logits, token = next_token(self.read, ids, 0)
        read = self.now()
        for step in range(steps):
            logits, token = next_token(self.write, token, prompt + step)
        written = self.now()
        if not bool(logits.isfinite().all()):
            raise ValueError("the logits are not finite")
        return {"first": read - begun, "next": (written - read) / steps, "peak": self.peak()}

    def static_cache(self, length: int) -> Any:
        """An empty one."""
        from transformers import StaticCache

        if length not in self.caches or not self.keeps_caches:
            self.caches = {length: StaticCache(self.model.config, length)}
        cache = self.caches[length]
        if any(getattr(layer, "is_initialized", False) for layer in cache.layers):
            cache.reset()
        return cache

    def now(self) -> float:
        """Seconds, when all that was asked for is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def forget_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        else:
            _forget_peak_memory()

    def peak(self) -> int:
        """Bytes of this process's memory at most since then, on CUDA of its tensors."""
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else _peak_memory()


def _parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The plain tensors that it is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor.data]
    return [part for name in tensor.__tensor_flatten__()[0] for part in _parts(getattr(tensor, name))]


def _forget_peak_memory() -> None:
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory() -> int:
    """Bytes of this process in memory at most since `_forget_peak_memory`."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))) * 1024


SERVERS: dict[str, Callable[..., Any]] = {"limits": Limits, "stand": Stand, "device": DeviceStand, "model": ModelStand}


def main(server: str, arguments: str) -> None:
    """Serves stdin until it ends."""
    # What libraries print must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    served: Any = None

    def start() -> Answer:
        nonlocal served
        served = SERVERS[server](**json.loads(arguments))
        hello: Answer = served.hello()
        return hello

    with torch.inference_mode():
        print(json.dumps(_answer(start)), file=answers)
        for line in sys.stdin:
            command = json.loads(line)
            answer = _answer(lambda: getattr(served, command.pop("do"))(**command))  # noqa: B023
            _settle()
            print(json.dumps(answer), file=answers)


def _answer(call: Callable[[], Answer]) -> Answer:
    """What `call` returns, or why it did not."""
    try:
        return {"status": "ok", **call()}
    except ImportError as error:
        return {"status": "missing", "why": str(error)}
    except NotImplementedError as error:
        return {"status": "unsupported", "why": str(error)}
    except Exception as error:
        return {"status": "failed", "why": f"{type(error).__name__}: {error}"}


def _settle(window: float = 5e-3, most: float = 0.5) -> None:
    """Returns once the process's threads sleep: OpenMP's go on spinning for a while, at the next contender's cost."""
    end = time.perf_counter() + most
    while time.perf_counter() < end:
        before = time.process_time()
        time.sleep(window)
        if time.process_time() - before < window / 5:
            return
