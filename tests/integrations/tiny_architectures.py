"""Tiny random models of nearly all architectures that the installed transformers has.

A config's sizes are known by their names and made small; an architecture that cannot be built from that is left out.
"""

from __future__ import annotations

import re

import torch
import transformers
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

LIMIT = 8_000_000  # weights

# What sizes become: the first pattern that matches the whole name.
SIZES = {
    r".*(pad|_ids?|stride|kernel|dilation|(in|num)_channels|num_labels|temporal|version|seed|feat_extract).*": None,
    r".*(key_value|kv|query)_?(head|group)s?.*|multi_query_group_num": 2,
    r".*_experts?_per_tok.*|.*top_?k.*|.*n_?group|topk_group|.*shared_experts?|moe_k|num_selected_experts": 1,
    r".*experts.*": 4,
    r".*head_(dim|size)|.*head_dim.*|d_kv|kv_channels|v_head_dim|qk_.*_dim": 16,
    r".*heads?": 4,
    r".*(layers?|depth|num_blocks|num_stages|num_hidden_groups)": 2,
    r".*(vocab_?size.*|codebook_size|num_embeddings)": 160,
    r".*(position|ctx|seq_?len|source|target|context).*": 128,
    r".*(intermediate|ffn|inner|mlp|feed_?forward|ff)_?(size|dim|hidden_size|hidden_dim)?|n_inner|d_ff": 96,
    r".*patch_size": 8,
    r".*(image|img|input|crop)_?size": 32,
    r".*(rank|state_size|d_state|state_dim)": 8,
    r".*(size|dim|dims|channels|width)|n_embd|d_model": 64,
}

# Which class, of those that a kind of config has: the one that does most.
CLASSES = [
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "MODEL_FOR_PRETRAINING_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES",
    "MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES",
    "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES",
    "MODEL_FOR_CTC_MAPPING_NAMES",
    "MODEL_MAPPING_NAMES",
]


def class_name(kind: str) -> str | None:
    """The model class that stands for a kind of config, if there is one."""
    for mapping in CLASSES:
        found = getattr(modeling_auto, mapping).get(kind)
        if found is not None:
            return found if isinstance(found, str) else found[0]
    return None


def kinds() -> list[str]:
    return sorted(kind for kind in CONFIG_MAPPING if class_name(kind) is not None)


def tiny_config(kind: str) -> PreTrainedConfig:
    return shrink(CONFIG_MAPPING[kind]())


def shrink(config: PreTrainedConfig) -> PreTrainedConfig:
    layers = getattr(config, "num_hidden_layers", None)
    fields = {name: value for name, value in vars(config).items() if not name.startswith("_")}
    for name, value in fields.items():
        if isinstance(value, PreTrainedConfig):
            shrink(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            small = next((size for pattern, size in SIZES.items() if re.fullmatch(pattern, name)), None)
            if small is not None and value > small:
                setattr(config, name, small)
            elif re.fullmatch(r".*_token_id", name) and value >= 160:
                setattr(config, name, 3)
        elif isinstance(value, dict) and "mrope_section" in value:  # of half a head
            value["mrope_section"] = [2, 3, 3]
    # What each layer is: one layer of every kind.
    of_layers = {name: value for name, value in fields.items() if isinstance(value, list) and len(value) == layers}
    if of_layers:
        kinds = {repr(kind): i for i, kind in reversed([*enumerate(zip(*of_layers.values(), strict=True))])}
        chosen = sorted(kinds.values())[:4] if len(kinds) > 1 else [0, 1]
        vars(config).update({name: [value[i] for i in chosen] for name, value in of_layers.items()})
        config.num_hidden_layers = len(chosen)
    return config


def tiny_model(kind: str) -> PreTrainedModel:
    """Raises whatever the architecture does for a config that was made small by force, ValueError if it stays large."""
    config = tiny_config(kind)
    model_class = getattr(transformers, class_name(kind))
    with torch.device("meta"):
        model = model_class._from_config(config)
    count = sum(param.numel() for param in model.parameters())
    if count > LIMIT:
        raise ValueError(f"{kind}: {count:,} weights")
    torch.manual_seed(0)
    return model_class._from_config(config).eval()


def inputs(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Something for `forward`."""
    ids = torch.tensor([[1, 17, 42, 99, 5]])
    size = getattr(model.config, "image_size", 32)
    size = size[0] if isinstance(size, (list, tuple)) else size
    given = {
        "input_ids": {"input_ids": ids},
        "pixel_values": {"pixel_values": torch.linspace(-1, 1, 3 * size * size).view(1, 3, size, size)},
        "input_values": {"input_values": torch.linspace(-1, 1, 4000)[None]},
        "input_features": {"input_features": torch.linspace(-1, 1, 80 * 64).view(1, 80, 64)},
    }[model.main_input_name]
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = ids
    return given
