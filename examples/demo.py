"""A real chat model in int4: quantized, saved, reloaded, asked a question; size, quality, speed beside torch's own.

Takes three minutes on 2 cores with AVX2; `--full` reads the text of docs/quality.md, `--quick` little and tries one
int4 format.
"""

from __future__ import annotations

import shutil
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from aoq import AOBaseConfig, AoqConfig, FqnToConfig, Int4WeightOnlyConfig, Int8WeightOnlyConfig
from aoq.evaluation import Quality, evaluate_all, evaluation_windows
from aoq.integrations.transformers import load_model
from aoq.ops.dtypes import dtype_name
from aoq.progress import track, waiting
from get_model import MODELS, get_model

QUESTION = "What is gravity?"
CONFIGS = {
    "int4 g32": Int4WeightOnlyConfig(group_size=32),
    "int4 g32, int8 head": FqnToConfig(  # the output layer, and the embedding that it is tied to
        {
            "_default": Int4WeightOnlyConfig(group_size=32),
            "lm_head": Int8WeightOnlyConfig(),
            "model.embed_tokens": Int8WeightOnlyConfig(),
        }
    ),
    "int4 g64 HQQ": Int4WeightOnlyConfig(group_size=64, use_hqq=True),
}

console = Console()


@dataclass(frozen=True)
class Speed:
    """Tokens a second: reading a prompt, and writing an answer."""

    prefill: float
    decode: float


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Two short windows of text, one int4 format.")] = False,
    full: Annotated[bool, typer.Option("--full", help="All the text of docs/quality.md.")] = False,
) -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # Its new name, cache, is not in older releases.
    warnings.filterwarnings("ignore", "`past_key_values` is deprecated", FutureWarning)
    bf16 = get_model()
    with waiting(f"Loading {bf16.name}"):
        reference, tokenizer = load_model(bf16)
    count, length = (2, 256) if quick else (12, 1024) if full else (4, 512)
    windows = evaluation_windows(tokenizer, count, length)

    # What torch has itself, in the dtype that it is fastest in: on many CPUs fp32, whatever the files have.
    plain = f"torch {dtype_name(reference.dtype)}"
    models: dict[str, PreTrainedModel] = {plain: reference}
    for name, config in list(CONFIGS.items())[: 1 if quick else None]:
        models[name] = quantize_save_reload(bf16, tokenizer, name, config)

    console.print(f"\n[bold]{QUESTION}[/bold]")
    for name, model in models.items():
        with waiting(f"{name} answers"):
            text = answer(model, tokenizer)
        console.print(f"{name}: {text}", highlight=False)

    table = Table(title=bf16.name, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for heading in ("MB", "perplexity", "KL", "top-1", "prefill\ntokens/s", "decode\ntokens/s"):
        table.add_column(heading, justify="right")
    quantized = [name for name in models if name != plain]
    qualities = dict(
        zip(quantized, evaluate_all([models[name] for name in quantized], windows, reference), strict=True)
    )
    reference_perplexity = qualities[quantized[0]].reference_perplexity
    speeds = measure(list(models.values()), repeats=2 if quick else 4)
    for (name, model), speed in zip(models.items(), speeds, strict=True):
        quality = quality_figures(qualities[name]) if name in qualities else (f"{reference_perplexity:.2f}", "", "")
        table.add_row(name, f"{megabytes(model):.0f}", *quality, f"{speed.prefill:,.0f}", f"{speed.decode:.1f}")
    console.print(table)
    embedding = reference.get_input_embeddings().weight
    console.print(
        f"{count} windows of {length} tokens; {torch.get_num_threads()} threads. MB in memory. The embedding, which is "
        f"also the output layer, stays {dtype_name(embedding.dtype)} ({embedding.nbytes / 1e6:.0f} MB) unless it says "
        "so. This model's weights were 4-bit in groups of 32 once, which flatters g32.",
        highlight=False,
    )


def quantize_save_reload(
    bf16: Path, tokenizer: PreTrainedTokenizerBase, name: str, config: AOBaseConfig
) -> PreTrainedModel:
    """The model that a second program would load: quantized here, saved, and read back."""
    directory = MODELS / f"{bf16.name} {name}".replace(",", "").replace(" ", "-")
    shutil.rmtree(directory, ignore_errors=True)
    start = time.perf_counter()
    with waiting(f"{name}: quantizing, saving, reloading"):
        model = AutoModelForCausalLM.from_pretrained(bf16, quantization_config=AoqConfig(config))
        quantized = time.perf_counter()
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        saved = time.perf_counter()
        model, _ = load_model(directory)
        reloaded = time.perf_counter()
    console.print(
        f"{name}: quantized while loading in {quantized - start:.1f} s, saved in {saved - quantized:.1f} s, "
        f"reloaded in {reloaded - saved:.1f} s",
        highlight=False,
    )
    return model


def answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """The beginning of the model's answer to the question."""
    chat = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**prompt, max_new_tokens=48, do_sample=False)
    return tokenizer.decode(out[0, prompt.input_ids.shape[1] :], skip_special_tokens=True)


@torch.inference_mode()
def measure(models: list[PreTrainedModel], repeats: int, prompt: int = 256, steps: int = 16) -> list[Speed]:
    """Each model's best speed of `repeats`, in turns, so that a busy moment does not hit one model alone."""
    ids = torch.randint(1000, 20000, (1, prompt), generator=torch.Generator().manual_seed(0))
    best = [Speed(0, 0) for _ in models]
    for turn in track(range(repeats * len(models)), "Timing"):
        i = turn % len(models)
        start = time.perf_counter()
        out = models[i](input_ids=ids, use_cache=True, logits_to_keep=1)
        read = time.perf_counter()
        for _ in range(steps):
            token = out.logits[:, -1:].argmax(-1)
            out = models[i](input_ids=token, past_key_values=out.past_key_values, use_cache=True)
        written = time.perf_counter()
        speed = Speed(prompt / (read - start), steps / (written - read))
        best[i] = Speed(max(best[i].prefill, speed.prefill), max(best[i].decode, speed.decode))
    return best


def megabytes(model: PreTrainedModel) -> float:
    """What the parameters take in memory; tied ones once."""
    return sum(param.nbytes for param in model.parameters()) / 1e6


def quality_figures(quality: Quality) -> tuple[str, str, str]:
    assert quality.reference_perplexity and quality.kl is not None and quality.top1 is not None
    change = quality.perplexity / quality.reference_perplexity - 1
    return f"{quality.perplexity:.2f} ({change:+.1%})", f"{quality.kl:.3f}", f"{quality.top1:.1%}"


if __name__ == "__main__":
    typer.run(main)
