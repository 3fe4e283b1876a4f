"""torchvision can be imported after this beside a torch for CPUs.

Its wheel is built for CUDA, and describes operators that it then does not have.
"""

import sys
from importlib.abc import MetaPathFinder

OPERATORS = ("nms", "qnms")


class BeforeTorchvision(MetaPathFinder):
    """Defines the operators when torchvision is looked for: processes that need no torch import none."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            self.library = torch.library.Library("torchvision", "FRAGMENT")
            for operator in OPERATORS:
                self.library.define(f"{operator}(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
            KEPT.append(self)
        return None


KEPT: list[BeforeTorchvision] = []  # a library that is freed takes its operators with it
sys.meta_path.insert(0, BeforeTorchvision())
