"""Stands for SGLang's kernels for CPUs, which are not on PyPI. It imports some; without AMX it calls none of them."""

from collections.abc import Callable


def __getattr__(name: str) -> Callable[..., None]:
    if not name.endswith("_cpu"):
        raise AttributeError(name)

    def kernel(*args: object, **kwargs: object) -> None:
        raise NotImplementedError(f"sgl_kernel.{name} is not installed")

    return kernel
