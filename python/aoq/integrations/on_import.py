"""Load an integration when its framework is imported: `import aoq` pulls in no framework, and order is free."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _Watch(MetaPathFinder):
    """Finds one module the ordinary way, and loads `integration` right after it."""

    def __init__(self, module: str, integration: str) -> None:
        self.module, self.integration = module, integration

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_then_integrate(module: ModuleType) -> None:
            execute(module)
            _integrate(self.integration)

        spec.loader.exec_module = execute_then_integrate  # type: ignore[method-assign]
        return spec


def on_import(module: str, integration: str) -> None:
    """Import `integration` once `module` has been imported: at once if it has been already.

    An integration that does not load (a framework too old, say) warns; it never breaks the framework's import.
    """
    if module in sys.modules:
        _integrate(integration)
    else:
        sys.meta_path.insert(0, _Watch(module, integration))


def _integrate(integration: str) -> None:
    try:
        importlib.import_module(integration)
    except ImportError as error:
        warnings.warn(f"{integration} did not load: {error}", stacklevel=2)
