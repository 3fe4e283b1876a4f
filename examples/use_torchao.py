"""torchao's own config, through transformers, on aoq's kernels: quantize, save, reload, answer."""

import tempfile

import torch
from torchao.quantization import Int4WeightOnlyConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TorchAoConfig

import aoq.integrations.torchao  # noqa: F401 (all it takes)
from get_model import get_model

model_id = get_model()
config = TorchAoConfig(Int4WeightOnlyConfig(group_size=32))
model = AutoModelForCausalLM.from_pretrained(model_id, dtype=torch.bfloat16, quantization_config=config)
with tempfile.TemporaryDirectory() as directory:
    model.save_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory)

tokenizer = AutoTokenizer.from_pretrained(model_id)
question = [{"role": "user", "content": "What is 2 + 2?"}]
inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
tokens = model.generate(**inputs, max_new_tokens=20, do_sample=False)
print(model.model.layers[0].mlp.up_proj.weight)
print(tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
