"""A whole module beside an adapter on 16 bits learns what it would learn in fp32."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BertConfig, Trainer, TrainingArguments
from transformers import BertForTokenClassification as Tagger

from hfstack.errors import ConfigError
from hfstack.training.weights_16_bits import settle_half_weights

RATE = 1e-5


def tagger() -> Tagger:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return Tagger(BertConfig(vocab_size=20, intermediate_size=16, num_labels=3, **sizes))


def trainer(tmp_path: Path, model: Any, **settings: Any) -> Trainer:
    rows = [{"input_ids": [1, 2, 3, 4], "labels": [0, 1, 2, 0]}] * 8
    return Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=20,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            report_to="none",
            use_cpu=True,
            save_strategy="no",
            **settings,
        ),
        train_dataset=Dataset.from_list(rows),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_head_beside_an_adapter_moves_by_every_step(tmp_path, dtype: torch.dtype, autocast: bool):
    config = LoraConfig(target_modules=["query"], modules_to_save=["classifier"])
    adapted = get_peft_model(tagger().to(dtype), config)
    made = trainer(tmp_path, adapted, bf16=autocast)
    settle_half_weights(made)

    head: Any = adapted.get_base_model().classifier.modules_to_save.default
    before = head.weight.detach().clone()
    assert head.weight.dtype == torch.float32
    ids = torch.tensor([[1, 2, 3]])
    assert adapted(input_ids=ids).logits.dtype == dtype
    made.train()
    # Adam takes about RATE in each of 20 steps; of 16 bits a weight of .02 has steps of 1e-4
    moved = (head.weight - before).abs()
    assert (moved > 5 * RATE).float().mean() > 0.9 and moved.max() < 25 * RATE

    other = get_peft_model(tagger().to(torch.bfloat16), config)
    left: Any = other.get_base_model().classifier.modules_to_save.default
    start = left.weight.detach().clone()
    trainer(tmp_path, other).train()
    assert ((left.weight - start) != 0).float().mean() < 0.3, "what it would be without"


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens"])
def test_an_embedding_beside_an_adapter_is_not_trained_in_16_bits(
    tmp_path: Path, tiny_llama: Path, name: str
):
    config = LoraConfig(target_modules=["q_proj"], modules_to_save=[name], task_type="CAUSAL_LM")
    for dtype in (torch.bfloat16, torch.float32):
        model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=dtype)
        model.config.tie_word_embeddings = False
        made = trainer(tmp_path, get_peft_model(model, config))
        if dtype == torch.float32:
            settle_half_weights(made)
            continue
        message = rf"--lora_modules_to_save {name}: .* set --dtype float32, .* leave {name} out"
        with pytest.raises(ConfigError, match=message):
            settle_half_weights(made)
        made.is_deepspeed_enabled = True
        settle_half_weights(made)
