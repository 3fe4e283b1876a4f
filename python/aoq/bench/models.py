"""Whole models: tokens a second reading a prompt and writing after it, and the memory that takes."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from aoq.cpu import auto_dtype
from aoq.ops.dtypes import dtype_name

from . import machine
from .measure import BASELINE, Entry, Json, Progress, Report, Session

_LATE = {"status": "unsupported", "why": "the time was up"}
LOAD_SECONDS, TURN_SECONDS = 900.0, 600.0  # then it hangs; compiling is part of a first turn

_LLAMA: Json = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "vocab_size": 128256,
}
_SMOLLM2_135M = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "num_hidden_layers": 30,
    "max_position_embeddings": 8192,
    "rope_theta": 100000.0,
    "vocab_size": 49152,
}
_LLAMA_1B = {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "num_hidden_layers": 16}
_LLAMA_3B = {"hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 24, "num_hidden_layers": 28}
_LLAMA_8B = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_hidden_layers": 32}

# config.json of models whose weights are not needed to time them.
SHAPES: dict[str, Json] = {
    "smollm2-135m": {**_LLAMA, **_SMOLLM2_135M, "tie_word_embeddings": True},
    "llama-3.2-1b": {**_LLAMA, **_LLAMA_1B, "tie_word_embeddings": True},
    "llama-3.2-3b": {**_LLAMA, **_LLAMA_3B, "head_dim": 128, "tie_word_embeddings": True},
    "llama-3.1-8b": {**_LLAMA, **_LLAMA_8B, "head_dim": 128, "tie_word_embeddings": False},
}


@dataclass(frozen=True)
class ModelSettings:
    """What to measure: each model (a directory, or a name in `SHAPES`), `steps` tokens after `prompt` tokens."""

    models: Sequence[str]
    prompt: int = 512
    steps: int = 32
    group_size: int = 128
    threads: int = 1
    rounds: int = 5
    compiled: bool = False  # compiled too, not only eager
    device: str = "cpu"  # or "cuda"
    minutes: float | None = None  # begin nothing later than this
    dtype: str = "auto"  # of what is not quantized; "auto": as stored, but fp32 where bf16 is slow

    def dtype_of(self, source: Path) -> str:
        """The dtype for the model in `source`, by name."""
        if self.dtype != "auto":
            return self.dtype
        config = json.loads((source / "config.json").read_text())
        name: str = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
        return dtype_name(auto_dtype(getattr(torch, name))) if self.device == "cpu" else name


class ModelMeasurement(Session):
    """Measures models as `settings` say, under each entry that can quantize one.

    The report's models: name, prompt, steps, group_size, compiled, dtype of what is not quantized; results: for each
    contender status; bytes of its parameters; peak bytes of its process, or on CUDA of its tensors; seconds to the
    first token and of the next ones, by round.
    """

    def __init__(self, settings: ModelSettings, entries: Sequence[Entry], progress: Progress = lambda *_: None) -> None:
        names = [model if model in SHAPES else Path(model).resolve().name for model in settings.models]
        about = machine.describe(settings.threads, settings.device)
        report = Report(about, dataclasses.asdict(settings) | {"models": names})
        can = [entry for entry in entries if entry.cls.models and settings.device in entry.cls.devices]
        super().__init__(report, can, progress)
        self.settings = settings
        self.end = float("inf") if settings.minutes is None else time.monotonic() + 60 * settings.minutes

    def measure(self) -> None:
        settings = self.settings
        # What a device is chosen for comes first, should the time not do for both.
        ways = (settings.device == "cuda", settings.device != "cuda") if settings.compiled else (False,)
        self.steps = len(settings.models) * len(ways) * (1 + settings.rounds)
        for model in settings.models:
            for compiled in ways:
                if time.monotonic() > self.end:
                    return
                with TemporaryDirectory() as scratch:
                    source = Path(model)
                    if model in SHAPES:
                        source = Path(scratch)
                        (source / "config.json").write_text(json.dumps(SHAPES[model]))
                    self.model(model if model in SHAPES else source.resolve().name, source, compiled)
                # The next model gets new processes: memory of this one would count as its.
                for name in list(self.workers):
                    self.workers.pop(name).close()

    def model(self, name: str, source: Path, compiled: bool) -> None:
        settings = self.settings
        text = f"{name}{', compiled' if compiled else ''}"
        begun = time.monotonic()
        self.start("model", {"threads": settings.threads, "device": settings.device})
        results: list[Json] = []
        self.report.models.append(
            {
                "name": name,
                "random": not any(source.glob("*.safetensors")),
                "prompt": settings.prompt,
                "steps": settings.steps,
                "group_size": settings.group_size,
                "compiled": compiled,
                "dtype": settings.dtype_of(source),
                "results": results,
            }
        )
        # What all are compared with must not be what there is no time for.
        ordered = sorted(self.entries, key=lambda entry: entry.cls.op != BASELINE)
        for contender in [entry.name for entry in ordered if entry.name in self.workers]:
            if time.monotonic() - begun > 0.7 * (self.end - begun):  # what is loaded is to be measured, too
                results.append({"contender": contender, **_LATE, "first": [], "next": []})
                continue
            self.step(f"{text}: {contender} loads and quantizes", 0)
            group_size = settings.group_size
            load = {"source": str(source.resolve()), "group_size": group_size, "compiled": compiled}
            load["dtype"] = settings.dtype_of(source)
            answer = self.ask(contender, LOAD_SECONDS, "load", **load)
            if answer["status"] == "ok":  # a turn that does not count: it compiles, and fills caches
                self.step(f"{text}: {contender} warms up", 0)
                warm = self.ask(contender, TURN_SECONDS, "turn", prompt=settings.prompt, steps=settings.steps)
                answer |= {key: value for key, value in warm.items() if key in ("status", "why")}
            results.append({"contender": contender, **answer, "first": [], "next": []})
            if answer["status"] != "ok" and contender in self.workers:
                self.workers.pop(contender).close()  # its memory is wanted
        self.step(text)
        for round_ in range(settings.rounds):
            if round_ and time.monotonic() > self.end:
                break
            first = round_ % max(len(results), 1)
            for result in results[first:] + results[:first]:
                if result["status"] != "ok":
                    continue
                self.step(f"{text}, round {round_ + 1} of {settings.rounds}: {result['contender']}", 0)
                answer = self.ask(
                    result["contender"], TURN_SECONDS, "turn", prompt=settings.prompt, steps=settings.steps
                )
                if answer["status"] != "ok":
                    result |= answer
                    continue
                for key in ("first", "next"):
                    result[key] += [None] * (round_ - len(result[key])) + [answer[key]]
                result["peak"] = answer["peak"]
            self.step(text)
