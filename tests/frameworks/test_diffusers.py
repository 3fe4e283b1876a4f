from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    ModelMixin,
    PipelineQuantizationConfig,
    SD3Transformer2DModel,
    WanTransformer3DModel,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

from aoq import (
    AOBaseConfig,
    AoqConfig,
    FqnToConfig,
    Int4Tensor,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt4WeightConfig,
    Int8DynamicActivationInt8WeightConfig,
    MappingType,
    QuantizedTensor,
    quantize_,
)
from aoq.integrations import quantization_config
from aoq.storage.safetensors import flatten

CONFIG = Int4WeightOnlyConfig(group_size=32)
CONFIGS = [CONFIG, Int8DynamicActivationInt8WeightConfig(), Int8DynamicActivationInt4WeightConfig()]
ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = "diffusion_pytorch_model.safetensors"

# Widths of 80 and 48: no multiple of the usual groups, nor of the kernels' tiles.
FLUX = {
    "patch_size": 1,
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 5,
    "joint_attention_dim": 48,
    "pooled_projection_dim": 40,
    "axes_dims_rope": [4, 4, 8],
}
SD3 = {
    "sample_size": 8,
    "patch_size": 1,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 5,
    "caption_projection_dim": 80,
    "joint_attention_dim": 48,
    "pooled_projection_dim": 40,
    "pos_embed_max_size": 16,
}
WAN = {
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 32,
    "freq_dim": 32,
    "ffn_dim": 80,
    "num_layers": 2,
}
KINDS = {
    "flux": (FluxTransformer2DModel, FLUX),
    "sd3": (SD3Transformer2DModel, SD3),
    "wan": (WanTransformer3DModel, WAN),
}


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


INPUTS = {
    "flux": {
        "hidden_states": randn(1, 9, 16),
        "encoder_hidden_states": randn(1, 5, 48),
        "pooled_projections": randn(1, 40),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.cartesian_prod(torch.tensor([0.0]), torch.arange(3.0), torch.arange(3.0)),
        "txt_ids": torch.zeros(5, 3),
    },
    "sd3": {
        "hidden_states": randn(1, 4, 8, 8),
        "encoder_hidden_states": randn(1, 5, 48),
        "pooled_projections": randn(1, 40),
        "timestep": torch.tensor([500.0]),
    },
    "wan": {
        "hidden_states": randn(1, 4, 1, 4, 4),
        "encoder_hidden_states": randn(1, 5, 32),
        "timestep": torch.tensor([500.0]),
    },
}


def tiny_transformer(parent: Path, kind: str = "flux", dtype: torch.dtype = torch.bfloat16) -> Path:
    """A new directory in `parent` with a tiny random transformer."""
    torch.manual_seed(0)
    model_class, config = KINDS[kind]
    model_class(**config).to(dtype).save_pretrained(parent / kind)
    return parent / kind


def load(directory: Path, config: AOBaseConfig | AoqConfig | None = None, **kwargs: object) -> ModelMixin:
    if config is not None:
        kwargs["quantization_config"] = config if isinstance(config, AoqConfig) else AoqConfig(config)
        kwargs.setdefault("dtype", torch.bfloat16)
    model_class = KINDS[json.loads((directory / "config.json").read_text())["_class_name"].lower()[:4].strip("t")][0]
    return model_class.from_pretrained(directory, **kwargs)


def kind_of(model: ModelMixin) -> str:
    return next(kind for kind, (model_class, _) in KINDS.items() if isinstance(model, model_class))


@torch.no_grad()
def run(model: ModelMixin) -> torch.Tensor:
    def cast(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if name.endswith("_ids") or name == "timestep" else tensor.to(dtype)

    dtype = model.proj_out.weight.dtype
    return model(**{name: cast(name, tensor) for name, tensor in INPUTS[kind_of(model)].items()}, return_dict=False)[0]


def assert_identical(a: ModelMixin, b: ModelMixin) -> None:
    ours, theirs = flatten(a.state_dict())[0], flatten(b.state_dict())[0]
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name
    assert torch.equal(run(a), run(b))


def quantized(model: ModelMixin) -> set[str]:
    return {name for name, param in model.named_parameters() if isinstance(param, QuantizedTensor)}


@pytest.mark.parametrize("kind", ["flux", "sd3"])
@pytest.mark.parametrize("config", CONFIGS)
def test_quantize_save_reload(tmp_path: Path, kind: str, config: AOBaseConfig) -> None:
    bf16 = tiny_transformer(tmp_path, kind)
    model = load(bf16, config)
    linears = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert quantized(model) == linears
    assert len(linears) > 20

    plain = load(bf16, dtype=torch.bfloat16)
    expected = run(plain)
    quantize_(plain, config)
    assert_identical(model, plain)
    assert 0 < (run(model) - expected).norm() < 0.3 * expected.norm()

    model.save_pretrained(tmp_path / "saved")
    reloaded = load(tmp_path / "saved")  # in the dtypes that it was saved in
    assert_identical(model, reloaded)
    reloaded.save_pretrained(tmp_path / "again")
    first, second = load_file(tmp_path / "saved" / WEIGHTS), load_file(tmp_path / "again" / WEIGHTS)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_checkpoint_is_plain_tensors(tmp_path: Path) -> None:
    load(tiny_transformer(tmp_path), CONFIG).save_pretrained(tmp_path / "saved")
    with safe_open(tmp_path / "saved" / WEIGHTS, framework="pt") as file:
        assert file.get_tensor("proj_out._weight_qdata").shape == (16, 40)
        assert json.loads(file.metadata()["proj_out.weight"])["_type"] == "Int4Tensor"
    written = json.loads((tmp_path / "saved" / "config.json").read_text())["quantization_config"]
    assert written == {**AoqConfig(CONFIG).to_dict(), "modules_to_not_convert": []}


def test_sharded(tmp_path: Path) -> None:
    model = load(tiny_transformer(tmp_path), CONFIG)
    model.save_pretrained(tmp_path / "saved", max_shard_size="20KB")
    index = json.loads((tmp_path / "saved" / f"{WEIGHTS}.index.json").read_text())["weight_map"]
    owners: dict[str, set[str]] = {}
    for name, file in index.items():
        owners.setdefault(name.partition("._weight_")[0], set()).add(file)
    assert any(len(files) > 1 for files in owners.values())  # a weight whose parts are in several files
    assert_identical(model, load(tmp_path / "saved"))


def test_pickled(tmp_path: Path) -> None:
    model = load(tiny_transformer(tmp_path), CONFIG)
    model.save_pretrained(tmp_path / "saved", safe_serialization=False)
    assert_identical(model, load(tmp_path / "saved", use_safetensors=False, dtype=torch.bfloat16))


def test_single_file(tmp_path: Path) -> None:
    bf16 = tiny_transformer(tmp_path)
    model = FluxTransformer2DModel.from_single_file(
        str(bf16 / WEIGHTS), config=str(bf16), quantization_config=AoqConfig(CONFIG), dtype=torch.bfloat16
    )
    assert_identical(model, load(bf16, CONFIG))


# ---- which weights, and how


def test_modules_to_not_convert(tmp_path: Path) -> None:
    model = load(tiny_transformer(tmp_path), AoqConfig(CONFIG, ["time_text_embed", "transformer_blocks.1", "proj"]))
    names = quantized(model)
    assert "transformer_blocks.0.attn.to_q.weight" in names
    assert not any("time_text_embed" in name or name.startswith("transformer_blocks.1.") for name in names)
    assert "single_transformer_blocks.0.proj_out.weight" in names  # "proj" is not a part of it between dots
    assert "transformer_blocks.0.ff.net.0.proj.weight" not in names
    model.save_pretrained(tmp_path / "saved")
    reloaded = load(tmp_path / "saved")
    assert_identical(model, reloaded)
    assert quantized(reloaded) == names


def test_fqn_to_config(tmp_path: Path) -> None:
    symmetric = Int4WeightOnlyConfig(group_size=16, mapping_type=MappingType.SYMMETRIC)
    rules = FqnToConfig({r"re:.*\.attn\.to_q": symmetric, "proj_out": None, "_default": CONFIG})
    model = load(tiny_transformer(tmp_path), rules)
    groups = {name: param.group_size for name, param in model.named_parameters() if isinstance(param, Int4Tensor)}
    assert groups["transformer_blocks.1.attn.to_q.weight"] == 16
    assert groups["transformer_blocks.1.attn.to_k.weight"] == 32
    assert "proj_out.weight" not in groups
    model.save_pretrained(tmp_path / "saved")
    assert_identical(model, load(tmp_path / "saved"))


def test_modules_in_fp32_stay(tmp_path: Path) -> None:
    model = load(tiny_transformer(tmp_path, "wan"), CONFIG)
    dtypes = {name: param.dtype for name, param in model.named_parameters()}
    assert dtypes["condition_embedder.time_embedder.linear_1.weight"] == torch.float32
    assert not any("time_embedder" in name for name in quantized(model))
    assert "blocks.0.attn1.to_q.weight" in quantized(model)
    model.save_pretrained(tmp_path / "saved")
    assert_identical(model, load(tmp_path / "saved"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    bf16 = tiny_transformer(tmp_path)
    assert run(load(bf16, CONFIG, dtype=dtype)).dtype == dtype
    load(bf16, CONFIG).save_pretrained(tmp_path / "saved")
    reloaded = load(tmp_path / "saved", dtype=dtype)
    assert {param.dtype for param in reloaded.parameters()} == {dtype}
    assert run(reloaded).dtype == dtype
    with pytest.raises(ValueError, match="Casting a quantized model"):
        reloaded.to(torch.bfloat16)


def test_moves_between_devices(tmp_path: Path) -> None:
    model = load(tiny_transformer(tmp_path), CONFIG)
    expected = run(model)
    assert torch.equal(run(model.to("cpu")), expected)
    assert model.to("meta").proj_out.weight.device.type == "meta"


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
def test_device_map(tmp_path: Path, device_map: object) -> None:
    bf16 = tiny_transformer(tmp_path)
    model = load(bf16, CONFIG, device_map=device_map)
    model.save_pretrained(tmp_path / "saved")
    assert_identical(load(tmp_path / "saved", device_map=device_map), load(bf16, CONFIG))
    with pytest.raises(ValueError, match="offload weights quantized with aoq to disk"):
        load(bf16, CONFIG, device_map={"": "disk"}, offload_folder=str(tmp_path / "offload"))


# ---- running


@pytest.mark.parametrize("config", CONFIGS)
def test_compile(tmp_path: Path, config: AOBaseConfig) -> None:
    model = load(tiny_transformer(tmp_path), config, dtype=torch.float32)
    expected = run(model)
    model.compile(fullgraph=True)
    # Activations rounded to int8 turn a difference in the last bit into one of a code.
    atol = 1e-5 if config is CONFIG else 0.05
    torch.testing.assert_close(run(model), expected, rtol=1e-4, atol=atol * expected.abs().max().item())


def test_compile_repeated_blocks(tmp_path: Path) -> None:
    model = load(tiny_transformer(tmp_path), CONFIG, dtype=torch.float32)
    expected = run(model)
    model.compile_repeated_blocks(fullgraph=True)
    torch.testing.assert_close(run(model), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_dequantize(tmp_path: Path) -> None:
    model = load(tiny_transformer(tmp_path), CONFIG, dtype=torch.float32)
    expected = run(model)
    model.dequantize()
    assert not quantized(model)
    torch.testing.assert_close(run(model), expected, rtol=1e-4, atol=1e-5)


def test_lora(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = load(tiny_transformer(tmp_path), CONFIG, dtype=torch.float32)
    model.add_adapter(peft.LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False))
    optimizer = torch.optim.SGD([param for param in model.parameters() if param.requires_grad], lr=0.01)
    losses = []
    for _ in range(4):
        loss = model(**INPUTS["flux"], return_dict=False)[0].square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


# ---- a whole pipeline


def tiny_pipeline(directory: Path) -> Path:
    """A Flux pipeline with every component, all random."""
    torch.manual_seed(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    clip_tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    t5_tokens = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("\u2581", -2.0),
        *((letter, -3.0) for letter in letters),
    ]
    clip = CLIPTextConfig(
        vocab_size=len(clip_tokens),
        hidden_size=40,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=len(clip_tokens) - 2,
        eos_token_id=len(clip_tokens) - 1,
        max_position_embeddings=16,
    )
    t5 = T5Config(vocab_size=len(t5_tokens), d_model=48, d_kv=12, d_ff=80, num_layers=2, num_heads=4)
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            use_quant_conv=False,
            use_post_quant_conv=False,
            shift_factor=0.1,
            scaling_factor=0.4,
        ),
        text_encoder=CLIPTextModel(clip),
        tokenizer=CLIPTokenizer({token: i for i, token in enumerate(clip_tokens)}, [], model_max_length=16),
        text_encoder_2=T5EncoderModel(t5),
        tokenizer_2=T5TokenizerFast(vocab=t5_tokens, extra_ids=0, model_max_length=16),
        transformer=FluxTransformer2DModel(**FLUX),
    )
    pipeline.to(torch.bfloat16).save_pretrained(directory)
    return directory


def image(pipeline: DiffusionPipeline) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    out = pipeline(
        "a red cat",
        height=32,
        width=32,
        num_inference_steps=3,
        max_sequence_length=8,
        generator=torch.Generator().manual_seed(1),
        output_type="np",
    )
    return out.images[0]


@pytest.mark.parametrize("way", ["backend", "mapping"])
def test_pipeline(tmp_path: Path, way: str) -> None:
    directory = tiny_pipeline(tmp_path / "bf16")
    if way == "backend":
        config = PipelineQuantizationConfig(
            quant_backend="aoq",
            quant_kwargs={"quant_type": CONFIG},
            components_to_quantize=["transformer", "text_encoder_2"],
        )
    else:
        each = AoqConfig(CONFIG)
        config = PipelineQuantizationConfig(quant_mapping={"transformer": each, "text_encoder_2": each})
    bf16 = DiffusionPipeline.from_pretrained(directory, dtype=torch.bfloat16)
    pipeline = DiffusionPipeline.from_pretrained(directory, dtype=torch.bfloat16, quantization_config=config)
    assert quantized(pipeline.transformer)
    assert quantized(pipeline.text_encoder_2)
    assert not quantized(pipeline.text_encoder)
    assert not quantized(pipeline.vae)
    expected = image(pipeline)
    assert expected.shape == (32, 32, 3)
    assert np.isfinite(expected).all()
    assert 0 < np.abs(expected - image(bf16)).mean() < 0.1

    pipeline.save_pretrained(tmp_path / "int4")
    reloaded = DiffusionPipeline.from_pretrained(tmp_path / "int4", dtype=torch.bfloat16)
    assert quantized(reloaded.text_encoder_2) == quantized(pipeline.text_encoder_2)
    assert np.array_equal(image(reloaded), expected)


def test_example(tmp_path: Path) -> None:
    directory = tiny_pipeline(tmp_path / "bf16")
    out = tmp_path / "cat.png"
    script = [sys.executable, ROOT / "examples" / "generate_image.py", directory, "a red cat", "-o", out]
    command = [*script, "--size", "32", "--steps", "2", "--save", tmp_path / "int4"]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "transformer" in ran.stdout
    first = out.read_bytes()
    script[2] = tmp_path / "int4"
    subprocess.run([*script, "--size", "32", "--steps", "2"], check=True)
    assert out.read_bytes() == first


# ---- finding aoq, and what goes wrong


@pytest.mark.parametrize(
    "imports", ["torch", "aoq, diffusers", "diffusers, aoq", "diffusers", "diffusers.quantizers.auto, torch"]
)
def test_no_import_is_needed(tmp_path: Path, imports: str) -> None:
    load(tiny_transformer(tmp_path), CONFIG).save_pretrained(tmp_path / "saved")
    script = f"""
import {imports}
from diffusers import FluxTransformer2DModel
model = FluxTransformer2DModel.from_pretrained({str(tmp_path / "saved")!r})
assert type(model.proj_out.weight).__name__ == "Int4Tensor"
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_importing_aoq_imports_no_framework() -> None:
    script = "import sys, aoq; assert not {'diffusers', 'transformers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_unsupported_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization_config.metadata, "version", lambda name: "0.39.0")
    with pytest.raises(ImportError, match=r"works with diffusers>=0.40, got 0.39.0: pip install"):
        load(tiny_transformer(tmp_path), CONFIG)


@pytest.mark.parametrize(
    "damage",
    ["lacks a part", "lacks a plain tensor", "wrong shape", "another model", "unknown type", "truncated", "no file"],
)
def test_damaged_checkpoint(tmp_path: Path, damage: str) -> None:
    load(tiny_transformer(tmp_path), CONFIG).save_pretrained(tmp_path / "saved")
    file = tmp_path / "saved" / WEIGHTS
    owner = "transformer_blocks.1.attn.to_k"
    tensors = load_file(file)
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    if damage == "lacks a part":
        del tensors[f"{owner}._weight_scale"]
    elif damage == "lacks a plain tensor":
        del tensors[f"{owner}.bias"]
    elif damage == "wrong shape":
        tensors[f"{owner}._weight_qdata"] = tensors[f"{owner}._weight_qdata"][:-1].clone()
    elif damage == "another model":
        config = json.loads((tmp_path / "saved" / "config.json").read_text())
        (tmp_path / "saved" / "config.json").write_text(json.dumps({**config, "attention_head_dim": 8}))
        owner = "expected shape"
    elif damage == "unknown type":
        metadata[f"{owner}.weight"] = metadata[f"{owner}.weight"].replace("Int4Tensor", "Int5Tensor")
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
        owner = WEIGHTS
    elif damage == "no file":
        file.unlink()
        owner = "no file named diffusion_pytorch_model"
    else:
        save_file(tensors, file, metadata)
    with pytest.raises((ValueError, OSError), match=owner.replace(".", r"\.")):
        load(tmp_path / "saved")


def test_bad_weight_is_named(tmp_path: Path) -> None:
    bf16 = tiny_transformer(tmp_path)
    tensors = load_file(bf16 / WEIGHTS)
    tensors["proj_out.weight"][0, 0] = float("nan")
    save_file(tensors, bf16 / WEIGHTS, {"format": "pt"})
    with pytest.raises(ValueError, match=r"proj_out\.weight: .*"):
        load(bf16, CONFIG)
