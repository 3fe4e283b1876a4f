"""Where programs written for aoq 0.1 find what is in `aoq.storage.convert` now."""

from aoq.storage.convert import config_of, convert_checkpoint, quantize_checkpoint

__all__ = ["config_of", "convert_checkpoint", "quantize_checkpoint"]
