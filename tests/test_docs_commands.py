"""Every block of commands in README, CONTRIBUTING and docs runs as it stands there.

The first word after a block's fence says what it is: python, sh, console (commands after "$ ", and what they print),
json or text. Commands run in a directory that has nothing in it but the model that they name, which is a tiny one here.
After the first word may stand `slow`, or what a block needs that a test has not, such as "needs vLLM, a server": such a
block is only parsed here, and tests/test_tree.py looks at its options.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from example_models import tiny_model
from foreign_checkpoints import gptq, write_checkpoint

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md")))
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SOURCES = ("DIR", "SmolLM2-135M-Instruct")  # what the reader has, or has got
QUANTIZED = "DIR-GPTQ"  # the same, quantized by another library
COMMANDS = ("python", "sh", "console")


@dataclass(frozen=True)
class Block:
    """Some lines of a page, from `line` on."""

    page: Path
    line: int
    kind: str
    note: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> str:
        """What to run, without what it prints."""
        if self.kind != "console":
            return self.text
        return "".join(line[2:] + "\n" for line in self.text.splitlines() if line.startswith("$ "))


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    found = []
    for match in FENCE.finditer(text):
        kind, _, note = match[1].partition(" ")
        found.append(Block(page, text.count("\n", 0, match.start()) + 1, kind, note, match[2]))
    return found


BLOCKS = [block for page in PAGES for block in blocks(page)]
RUN = [block for block in BLOCKS if block.kind in COMMANDS and not block.note.startswith("needs ")]


def test_there_are_blocks() -> None:
    assert {block.page.name for block in RUN} >= {"README.md", "vllm.md", "sglang.md", "lm_eval.md"}


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_blocks_parse(block: Block) -> None:
    assert block.kind in (*COMMANDS, "json", "text"), "the fence says what the block is"
    assert block.note in ("", "slow") or block.note.startswith("needs "), "it says what the block needs"
    assert not block.note or block.kind in COMMANDS
    if block.kind == "python":
        compile(block.text, str(block), "exec")
    elif block.kind == "json":
        json.loads(block.text)
    elif block.kind in COMMANDS:
        assert block.commands.strip(), "commands of a console stand after $"
        done = subprocess.run(["bash", "-n"], input=block.commands, capture_output=True, text=True)
        assert not done.stderr, done.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a tokenizer that makes a token of every character."""
    directory = tiny_model(tmp_path_factory.mktemp("model"))
    tokenizer = Tokenizer(models.WordLevel({chr(i): i for i in range(160)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model") / QUANTIZED
    write_checkpoint(directory, gptq(), {"quant_method": "gptq", "bits": 4, "group_size": 32})
    return directory


@pytest.mark.parametrize(
    "block", [pytest.param(block, marks=[pytest.mark.slow] * (block.note == "slow")) for block in RUN], ids=str
)
def test_blocks_run(block: Block, source: Path, quantized: Path, tmp_path: Path) -> None:
    for name in SOURCES:
        (tmp_path / name).symlink_to(source)
    (tmp_path / QUANTIZED).symlink_to(quantized)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-"] if block.kind == "python" else ["bash", "-e", "-o", "pipefail"]
    done = subprocess.run(command, input=block.commands, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    for written in re.findall(r"-o (\S+)|save_pretrained\(\"([^\"]+)\"\)", block.commands):
        assert any((tmp_path / name / "config.json").is_file() for name in written if name)
