"""Generate an image with a diffusers pipeline on the CPU, its transformer quantized while it is loaded.

    python examples/generate_image.py FLUX_DIR "a red cat" --save FLUX_DIR-int4
    python examples/generate_image.py FLUX_DIR-int4 "a red cat"

Works on every pipeline that has a transformer; a text encoder named text_encoder_2 (T5) is quantized too. A pipeline
that is quantized already is loaded as it is.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, PipelineQuantizationConfig

import aoq

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("pipeline", type=Path)
parser.add_argument("prompt")
parser.add_argument("-o", "--output", type=Path, default=Path("image.png"))
parser.add_argument("--steps", type=int, default=4)
parser.add_argument("--size", type=int, default=512)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--save", type=Path, help="where to write the quantized pipeline")
args = parser.parse_args()

quantization = aoq.AoqConfig(aoq.Int8DynamicActivationInt4WeightConfig())
components = {"transformer": quantization, "text_encoder_2": quantization}
config = PipelineQuantizationConfig(quant_mapping=components)
if "quantization_config" in json.loads((args.pipeline / "transformer" / "config.json").read_text()):
    config = None
start = time.perf_counter()
pipeline = DiffusionPipeline.from_pretrained(args.pipeline, dtype=torch.bfloat16, quantization_config=config)
print(f"loaded in {time.perf_counter() - start:.1f} s")
for name in components:
    params = list(getattr(pipeline, name).parameters())
    weights = sum(param.numel() for param in params)
    print(f"{name}: {weights:,} weights, {8 * sum(param.nbytes for param in params) / weights:.2f} bits each")

if args.save:
    pipeline.save_pretrained(args.save)
start = time.perf_counter()
image = pipeline(
    args.prompt,
    num_inference_steps=args.steps,
    height=args.size,
    width=args.size,
    generator=torch.Generator().manual_seed(args.seed),
).images[0]
image.save(args.output)
print(f"{args.output}: {args.steps} steps in {time.perf_counter() - start:.1f} s")
