"""The command line: `aoq quantize`, `aoq convert`, `aoq eval`, `aoq info`, `aoq bench`."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import json
import math
import platform
import signal
import sys
import traceback
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Annotated, Literal, ParamSpec

import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import aoq
from aoq import _C
from aoq.config import AOBaseConfig, MappingType, config_from_dict
from aoq.integrations.quantization_config import check_version
from aoq.ops.dtypes import dtype_name
from aoq.ops.kernels import kernels
from aoq.storage import checkpoint
from aoq.storage.checkpoint import StoredWeight, read_json, stored_weights, weight_files
from aoq.tensors.formats import commands, takers

P = ParamSpec("P")

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
console = Console()

_FORMATS = f"{', '.join(commands())}, or a config's JSON file"
_GROUPS = ", ".join(f"{name}: {config.options()['group_size']}" for name, config in takers("group_size").items())
_HQQ, _MAPPED = ", ".join(takers("use_hqq")), ", ".join(takers("mapping_type"))
_ZEROS = ", ".join(
    name
    for name, config in takers("mapping_type").items()
    if config.options()["mapping_type"] is MappingType.ASYMMETRIC
)
_DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_AUTO = "bf16, fp16 or fp32: of what is not quantized; by default as stored, or fp32 where bf16 is slow here."


def main(args: Sequence[str] | None = None) -> None:
    """Runs the command line on `args`, by default the process's own, and exits."""
    app(args=args, prog_name="aoq")


def one_line_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Decorates a command so that what goes wrong is one line on stderr and exit code 1."""

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except typer.Exit:
            raise
        except Exception as error:
            print(f"aoq: error: {_one_line(error)}", file=sys.stderr)
            raise typer.Exit(1) from error

    return wrapper


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, (OSError, ValueError, TypeError, RuntimeError, ImportError, MemoryError)) and not isinstance(
        error, RecursionError
    ):
        return text
    # Nobody foresaw this one: by itself the text would say little, such as a key.
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "aoq" in Path(frame.filename).parts] or frames
    where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
    return f"{type(error).__name__} in {where}: {text}; please report this as a bug of aoq"


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"aoq {aoq.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print aoq's version.")
    ] = False,
) -> None:
    """int4, int8 and fp8 weights for PyTorch models."""


@app.command()
@one_line_errors
def quantize(
    source: Annotated[Path, typer.Argument(help="A directory with safetensors weights, or a GGUF file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The directory to write.")],
    config: Annotated[str, typer.Option(help=f"{_FORMATS}.")] = "int4",
    group_size: Annotated[int | None, typer.Option(help=f"Weights that share a scale; by default {_GROUPS}.")] = None,
    hqq: Annotated[bool, typer.Option("--hqq", help=f"{_HQQ}: optimize zero points (slower, better).")] = False,
    symmetric: Annotated[
        bool | None,
        typer.Option(
            "--symmetric/--asymmetric", help=f"{_MAPPED}: without or with zero points; by default {_ZEROS} has them."
        ),
    ] = None,
    skip: Annotated[list[str] | None, typer.Option(help="Modules to leave too, such as mlp; may be repeated.")] = None,
    include_embedding: Annotated[bool, typer.Option("--include-embedding", help="Embeddings and head too.")] = False,
    embedding: Annotated[
        str | None, typer.Option(help="Embeddings and head too, in a format of their own: as --config.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="bf16, fp16 or fp32; auto: of what is not quantized, fp32 where bf16 is slow here."),
    ] = None,
    max_shard: Annotated[float, typer.Option(help="GB that a file may have.")] = 2.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a checkpoint at the output.")] = False,
) -> None:
    """Quantize a checkpoint, weight by weight, for transformers' `from_pretrained` to load."""
    _quiet_transformers()
    from aoq.storage.convert import quantize_checkpoint

    wanted: torch.dtype | Literal["auto"] | None = None
    if dtype is not None:
        wanted = _dtype(dtype) or "auto"
    # Ended like an interrupt, so that nothing half-written stays behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    report = quantize_checkpoint(
        source,
        output,
        _config(config, group_size, hqq, symmetric),
        skip=skip,
        include_embedding=include_embedding,
        embedding=None if embedding is None else _config(embedding, option="--embedding"),
        dtype=wanted,
        max_shard_bytes=_shard_bytes(max_shard),
        overwrite=overwrite,
    )
    console.print(f"{report}\nwritten to {output}", highlight=False)


@app.command()
@one_line_errors
def convert(
    source: Annotated[Path, typer.Argument(help="A directory that others quantized.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The directory to write.")],
    max_shard: Annotated[float, typer.Option(help="GB that a file may have.")] = 2.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a checkpoint at the output.")] = False,
) -> None:
    """Write a checkpoint of GPTQ, AWQ, compressed-tensors, AutoRound, HQQ or torchao as aoq's, code for code."""
    _quiet_transformers()
    from aoq.storage.convert import convert_checkpoint

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    report = convert_checkpoint(source, output, max_shard_bytes=_shard_bytes(max_shard), overwrite=overwrite)
    lines = str(report).splitlines()
    lines[0] = lines[0].replace("quantized", "converted", 1)
    console.print("\n".join([*lines, f"written to {output}"]), highlight=False)


def _config(
    name: str,
    group_size: int | None = None,
    hqq: bool = False,
    symmetric: bool | None = None,
    option: str = "--config",
) -> AOBaseConfig:
    mapping = None if symmetric is None else MappingType.SYMMETRIC if symmetric else MappingType.ASYMMETRIC
    given = {
        "use_hqq": ("--hqq", hqq or None),
        "mapping_type": ("--symmetric" if symmetric else "--asymmetric", mapping),
        "group_size": ("--group-size", group_size),
    }
    asked = {field: value for field, (_, value) in given.items() if value is not None}
    for field in asked:
        if name not in takers(field):
            names = " or ".join(takers(field))
            raise ValueError(f"{given[field][0]}: goes with --config {names}, got {name}")
    if name in commands():
        return commands()[name].with_options(**asked)
    if not name.endswith(".json"):
        raise ValueError(f"{option}: expected {_FORMATS}, got {name}")
    try:
        return config_from_dict(read_json(Path(name)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error


def _shard_bytes(gigabytes: float) -> int:
    if not 0 < gigabytes < math.inf:
        raise ValueError(f"--max-shard: expected GB above 0, got {gigabytes:g}")
    return max(1, int(gigabytes * 1e9))


def _dtype(name: str) -> torch.dtype | None:
    """The dtype by its name; None for "auto". Raises ValueError."""
    if name != "auto" and name not in _DTYPES:
        raise ValueError(f"--dtype: expected one of auto, {', '.join(_DTYPES)}, got {name}")
    return _DTYPES.get(name)


@app.command("eval")
@one_line_errors
def evaluate(
    directory: Annotated[Path, typer.Argument(help="The model's directory.")],
    against: Annotated[Path | None, typer.Option(help="A model to compare with: the one before quantization.")] = None,
    windows: Annotated[int, typer.Option(help="Windows of text to evaluate on.")] = 12,
    length: Annotated[int, typer.Option(help="Tokens in a window.")] = 1024,
    dtype: Annotated[str, typer.Option(help=_AUTO)] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Perplexity on real text and, with --against, KL divergence and top-1 agreement."""
    _quiet_transformers()
    from aoq import evaluation
    from aoq.integrations.transformers import load_model

    wanted = _dtype(dtype)
    model, tokenizer = load_model(directory, wanted)
    reference = load_model(against, wanted)[0] if against is not None else None
    tokens = evaluation.evaluation_windows(tokenizer, windows, length)
    quality = evaluation.evaluate(model, tokens, reference)
    if as_json:
        print(json.dumps(dataclasses.asdict(quality), indent=2))
        return
    table = Table(title=f"{windows} windows of {length} tokens", title_justify="left", box=SIMPLE_HEAD)
    for heading in ("model", "perplexity", "KL divergence", "top-1 agreement"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    change = ""
    if quality.reference_perplexity is not None:
        table.add_row(str(against), f"{quality.reference_perplexity:.2f}", "", "")
        change = f" ({quality.perplexity / quality.reference_perplexity - 1:+.1%})"
    kl = "" if quality.kl is None else f"{quality.kl:.4f}"
    top1 = "" if quality.top1 is None else f"{quality.top1:.1%}"
    table.add_row(str(directory), f"{quality.perplexity:.2f}{change}", kl, top1)
    console.print(table)


@app.command()
@one_line_errors
def info(
    directory: Annotated[Path | None, typer.Argument(help="A checkpoint; without one, this installation.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare a checkpoint's data with the hashes that were written with them.")
    ] = False,
) -> None:
    """What a checkpoint holds, or what this installation of aoq can do here."""
    if directory is None:
        if verify:
            raise ValueError("--verify: needs a checkpoint's directory")
        _print_installation()
        return
    _print_checkpoint(directory)
    if verify:
        _verify(directory)


@app.command()
@one_line_errors
def bench(
    op: Annotated[
        list[str] | None, typer.Option(help="int4_mm, int5_mm, fp8_mm ...; may be repeated. By default those of peers.")
    ] = None,
    shapes: Annotated[str, typer.Option(help="Weights, out x in: NxK,NxK,...")] = "4096x4096",
    m: Annotated[str, typer.Option("--m", help="Rows of x (tokens).")] = "1,4,16,64,256",
    group_size: Annotated[int, typer.Option(help="int4 weights that share a scale.")] = 128,
    threads: Annotated[int | None, typer.Option(help="By default as torch has it.")] = None,
    rounds: Annotated[int, typer.Option(help="Turns of each contender.")] = 7,
    seconds: Annotated[float, typer.Option(help="Of quiet calls in a turn.")] = 0.1,
    only: Annotated[list[str] | None, typer.Option(help="Part of a contender's name; may be repeated.")] = None,
    isa: Annotated[list[str] | None, typer.Option(help="An ISA to force for aoq besides its own choice.")] = None,
    python: Annotated[
        list[str] | None, typer.Option(help="PEER=PYTHON: another Python, or virtual environment, that has the peer.")
    ] = None,
    contenders: Annotated[
        list[Path] | None, typer.Option(help="A file with contenders of your own; may be repeated.")
    ] = None,
    model: Annotated[
        list[Path] | None, typer.Option(help="A whole model instead: a directory; config.json alone will do.")
    ] = None,
    random_model: Annotated[list[str] | None, typer.Option(help="The same by name: llama-3.2-1b, ...")] = None,
    compile_: Annotated[bool, typer.Option("--compile", help="Models also under torch.compile.")] = False,
    device: Annotated[str, typer.Option(help="Of models: cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help=f"Of models: {_AUTO}")] = "auto",
    minutes: Annotated[float | None, typer.Option(help="Of models: begin nothing later than this.")] = None,
    prompt: Annotated[int, typer.Option(help="Tokens that a model reads.")] = 512,
    steps: Annotated[int, typer.Option(help="Tokens that it then writes.")] = 32,
    quick: Annotated[bool, typer.Option("--quick", help="A small shape, few rounds: a minute.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every figure here.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the roofline here: a PNG, SVG or PDF a shape.")] = None,
    realtime: Annotated[
        bool, typer.Option("--realtime", help="Run at real-time priority (root): steadier on a busy machine.")
    ] = False,
) -> None:
    """Time aoq's matmuls, or models, beside torch's own, every peer that is installed, and what this machine can do."""
    from aoq.bench import command, measure, models

    threads = threads or torch.get_num_threads()
    model_names = command.check_models(model or (), random_model or ())
    command.check_device(device, model_names)
    settings = measure.Settings(
        command.parse_shapes("576x1536" if quick else shapes),
        command.parse_numbers("--m", "1,16" if quick else m),
        group_size,
        threads,
        3 if quick else rounds,
        0.02 if quick else seconds,
    )
    model_settings = models.ModelSettings(
        model_names,
        64 if quick else prompt,
        8 if quick else steps,
        group_size,
        threads,
        settings.rounds,
        compile_,
        device,
        minutes,
        dtype if (named := _dtype(dtype)) is None else dtype_name(named),
    )
    files = command.contender_files(contenders or ())
    every = measure.entries(sys.executable, command.parse_pythons(python or ()), isa or (), files)
    entries = [entry for entry in every if entry.cls.is_for(device)]
    chosen = command.chosen(entries, op or (), only or ())
    if plot is not None:
        command.check_plot(plot)
    for file in (json_file, plot):
        command.check_writable(file)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # keeps what was measured
    if realtime:
        command.be_realtime()
    report, interrupted = command.measure(
        lambda progress: (
            models.ModelMeasurement(model_settings, chosen, progress)
            if model_names
            else measure.Measurement(settings, chosen, progress)
        )
    )
    command.show(report, interrupted)
    command.write(report, json_file, plot)
    if interrupted:
        sys.exit(130)


def _print_installation() -> None:
    table = Table.grid(padding=(0, 2))
    rows = {
        "aoq": aoq.__version__,
        "torch": torch.__version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "compiler": _C.build_info()["compiler"],
        "CUDA": _cuda(),
        "CUTLASS": _C.build_info()["cutlass"],
        "ISA": f"{_C.isa()}; this machine has {', '.join(_C.isas())}",
        "threads": str(torch.get_num_threads()),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    for op in _C.ops():
        table.add_row(op, ", ".join(_C.kernels(op) + kernels(op, torch.device("cuda"))))
    console.print(table, highlight=False)


def _cuda() -> str:
    """Whether kernels run on CUDA here, or the first reason why not."""
    built: str = _C.build_info()["cuda"]
    if built.startswith("no"):
        return built
    if torch.version.cuda is None:
        return f"no: torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return "no: torch finds no CUDA device"
    nvcc, (major, minor) = built.split()[1], _driver_cuda()
    if major < int(nvcc.split(".")[0]):  # torch may be content with less: aoq has a CUDA runtime of its own
        return f"no: aoq is built with nvcc {nvcc}, and the driver here is for CUDA {major}.{minor}"
    return f"yes: {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"


def _driver_cuda() -> tuple[int, int]:
    """The newest CUDA that the driver is for."""
    version = ctypes.c_int()
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    return version.value // 1000, version.value % 1000 // 10


def _print_checkpoint(directory: Path) -> None:
    weights = stored_weights(weight_files(directory)).values()
    kinds: dict[tuple[str, str], list[StoredWeight]] = {}
    for weight in weights:
        module = weight.name.removesuffix(".weight").rpartition(".")[2]
        kinds.setdefault((module, weight.format), []).append(weight)
    config = read_json(directory / "config.json") if (directory / "config.json").is_file() else {}
    title = ", ".join(config.get("architectures") or [str(directory)])
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("module", overflow="fold")
    table.add_column("format")
    for heading in ("count", "weights", "bits/weight", "MB"):
        table.add_column(heading, justify="right")
    rows = [(*key, *_figures(members)) for key, members in kinds.items()]
    for row in sorted(rows, key=lambda row: -float(row[-1])):
        table.add_row(*row)
    table.add_section()
    table.add_row("all", "", *_figures(weights))
    console.print(table)


def _verify(directory: Path) -> None:
    """Raises ValueError unless everything that has a hash is as it was written, and something has one."""
    verified, unknown = checkpoint.verify(weight_files(directory))
    if not verified:
        raise ValueError(f"{directory}: has no hashes to verify: it was written by aoq 0.2 or older, or by others")
    rest = f"; {unknown} more have no hash" if unknown else ""
    print(f"{verified} tensors are as they were written{rest}")


def _figures(weights: Collection[StoredWeight]) -> tuple[str, str, str, str]:
    numel, nbytes = sum(weight.numel for weight in weights), sum(weight.nbytes for weight in weights)
    return str(len(weights)), f"{numel:,}", f"{8 * nbytes / max(numel, 1):.2f}", f"{nbytes / 1e6:.1f}"


def _quiet_transformers() -> None:
    """Raises ImportError, saying what to install, unless transformers is there."""
    check_version("transformers")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
