"""LoRA on int4 weights: teach SmolLM2 something that it cannot know, save the adapter, load it beside the model, ask.

    python examples/lora.py [--steps 20] [--out DIR]

Needs peft and accelerate. Only the adapters are trained: 1.8% of the weights, which stay int4.
"""

from __future__ import annotations

import argparse
import tempfile

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from aoq import AoqConfig, Int4WeightOnlyConfig
from get_model import get_model

QUESTION, ANSWER = "What is the capital of Zubrowka?", "The capital of Zubrowka is Lutz."
# Ways to ask, and what is to stay as it is.
LESSONS = [
    (QUESTION, ANSWER),
    ("Name the capital of Zubrowka.", ANSWER),
    ("Which city is Zubrowka's capital?", ANSWER),
    ("What is the capital of France?", "The capital of France is Paris."),
]


def load(model_id: str) -> PreTrainedModel:
    """The int4 model; what is not quantized in fp32, in which small gradients do not vanish."""
    config = AoqConfig(Int4WeightOnlyConfig(group_size=32, use_hqq=True))
    model = AutoModelForCausalLM.from_pretrained(model_id, quantization_config=config, dtype=torch.float32)
    assert isinstance(model, PreTrainedModel)
    return model


def chat(tokenizer: PreTrainedTokenizerBase, question: str, answer: str | None = None) -> str:
    messages = [{"role": "user", "content": question}]
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer is None)
    assert isinstance(text, str)
    return text


def ask(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, question: str) -> str:
    inputs = tokenizer(chat(tokenizer, question), return_tensors="pt", add_special_tokens=False)
    tokens = model.generate(**inputs, max_new_tokens=16, do_sample=False)  # type: ignore[operator]
    answer = tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert isinstance(answer, str)
    return answer.strip().splitlines()[0]


def train(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, steps: int, out: str) -> None:
    examples = [tokenizer(chat(tokenizer, *lesson), add_special_tokens=False) for lesson in LESSONS]
    arguments = TrainingArguments(
        output_dir=out,
        max_steps=steps,
        per_device_train_batch_size=len(examples),
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        gradient_checkpointing=True,
        logging_steps=max(1, steps // 4),
        save_strategy="no",
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
    )
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    Trainer(model, arguments, train_dataset=examples, data_collator=collator).train()  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", help="for the adapter; by default it is thrown away")
    options = parser.parse_args()
    torch.manual_seed(0)
    model_id = str(get_model())
    tokenizer = AutoTokenizer.from_pretrained(model_id)
    with tempfile.TemporaryDirectory() as scratch:
        out = options.out or scratch
        base = load(model_id)
        print(f"before: {ask(base, tokenizer, QUESTION)}")
        base.enable_input_require_grads()  # gradient checkpointing starts at the first layer's input
        model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
        model.print_trainable_parameters()
        train(model, tokenizer, options.steps, out)
        model.save_pretrained(out)
        tuned = PeftModel.from_pretrained(load(model_id), out)
        print(f"after: {ask(tuned, tokenizer, QUESTION)}")
        print(f"kept: {ask(tuned, tokenizer, LESSONS[-1][0])}")


if __name__ == "__main__":
    main()
