"""Makes quant_method "aoq" known to transformers and diffusers when they are imported, in any program.

torch calls `register` when it is imported (entry points of the group `torch.backends`; TORCH_DEVICE_BACKEND_AUTOLOAD=0
turns them off), and so does `import aoq`. This is a package of its own because torch is not whole by then and aoq
needs torch: aoq is imported right after the framework's table of quantization methods, and no framework before it is.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

TABLES = ("transformers.quantizers.auto", "diffusers.quantizers.auto")


def register() -> None:
    """Adds aoq to the tables that are imported already, and to each other one as soon as it is."""
    watched = {finder.table for finder in sys.meta_path if isinstance(finder, _Watch)}
    for table in TABLES:
        if table not in watched and not _add_to(table):
            sys.meta_path.insert(0, _Watch(table))


class _Watch(MetaPathFinder):
    """Finds the module `table` the ordinary way, and adds aoq to it right after it was loaded."""

    def __init__(self, table: str) -> None:
        self.table = table

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if _add_to(self.table):  # it was being imported when the watch began
            sys.meta_path.remove(self)
            return None
        if name != self.table:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_then_add(module: ModuleType) -> None:
            execute(module)
            _add(module)

        spec.loader.exec_module = execute_then_add  # type: ignore[method-assign]
        return spec


def _add_to(table: str) -> bool:
    """Adds aoq to the table if it is imported and whole; returns whether it is."""
    module = sys.modules.get(table)
    if module is None or getattr(module.__spec__, "_initializing", False):
        return False
    _add(module)
    return True


def _add(module: ModuleType) -> None:
    try:
        importlib.import_module("aoq.integrations.quantization_config").register(module)
    except Exception as error:  # never the framework's problem
        warnings.warn(f"{module.__name__} does not know aoq: {error}", stacklevel=2)
