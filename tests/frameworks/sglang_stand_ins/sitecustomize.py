"""Python imports this when it starts, in each of SGLang's processes."""

import before_torchvision  # noqa: F401
