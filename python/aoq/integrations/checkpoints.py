"""Other producers' checkpoints in transformers: importing this makes `from_pretrained` load them onto aoq's kernels.

    import aoq.integrations.checkpoints
    model = AutoModelForCausalLM.from_pretrained(directory)  # GPTQ, AWQ, compressed-tensors, AutoRound, HQQ

Codes and scales stay as they are, and no other package is needed. From then on aoq, and not transformers' own
integration, reads checkpoints with these quant_methods, and `model.save_pretrained` writes aoq's. Without the import
nothing changes.
"""

from __future__ import annotations

from transformers.quantizers import auto

from aoq.integrations.transformers_foreign import METHOD, ForeignConfig, ForeignQuantizer
from aoq.storage.producers import READERS

auto.AUTO_QUANTIZER_MAPPING[METHOD] = ForeignQuantizer
for _method in READERS:
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING[_method] = ForeignConfig
