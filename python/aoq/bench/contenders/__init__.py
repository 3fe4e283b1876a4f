"""The contenders, a file per peer. Every `Contender` subclass in a file here takes part; files import torch only."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from ..contender import Contender

FILES = tuple(sorted(path for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__"))


def load(file: Path) -> ModuleType:
    """A file as a module of this package, wherever it lies."""
    name = f"{__name__}.{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def contenders_in(file: Path) -> dict[str, type[Contender]]:
    """The file's contenders by class name, in its order."""
    module = load(file)
    own = (value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__)
    return {value.__name__: value for value in own if hasattr(value, "name") and hasattr(value, "op")}
