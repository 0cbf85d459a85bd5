"""A tiny PPO trainer for tests: an untrained model, a reward that counts letters, seconds of
CPU."""

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from hfstack.models.gru import GRUConfig, GRUForCausalLM
from hfstack.tasks.rl.ppo.config import PPOConfig
from hfstack.tasks.rl.ppo.engines.interface import Rollout
from hfstack.tasks.rl.ppo.trainer import PPOTrainer

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}<|endoftext|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def vowels(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """The share of vowels in a completion."""
    texts = [one if isinstance(one, str) else one[-1]["content"] for one in completions]
    return [sum(letter in "aeiou" for letter in text) / max(1, len(text)) for text in texts]


def prompts(count: int = 16, *, conversational: bool = False) -> Dataset:
    """Prompts of different lengths."""
    texts = [f"Tell of {'a fox and ' * (number % 4)}{number} owls." for number in range(count)]
    rows: list[Any] = (
        [[{"role": "user", "content": text}] for text in texts] if conversational else texts
    )
    return Dataset.from_dict({"prompt": rows, "label": list(range(count))})


def lora(rank: int = 4, **settings: Any) -> LoraConfig:
    """An adapter on every linear layer."""
    return LoraConfig(
        r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM", **settings
    )


def architecture(name: str, tokenizer: PreTrainedTokenizerBase, llama: Path) -> PreTrainedModel:
    """An untrained model of one kind: rotary or absolute positions, or a recurrent state."""
    set_seed(0)
    if name == "llama":
        return AutoModelForCausalLM.from_pretrained(llama)
    ids = {
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if name == "gpt2":
        config = GPT2Config(
            vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=128, **ids
        )
        model = GPT2LMHeadModel(config)
        torch.nn.init.normal_(model.transformer.wpe.weight, std=0.5)  # so that positions matter
        return model
    assert name == "gru"
    return GRUForCausalLM(
        GRUConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, **ids)
    )


def trainer(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    model: Any,
    *,
    build: dict[str, Any] | None = None,
    **settings: Any,
) -> PPOTrainer:
    """A trainer of two rollouts with two minibatches each; `build` goes to PPOTrainer, the rest to
    PPOConfig.
    """
    if isinstance(model, Path):
        model = AutoModelForCausalLM.from_pretrained(model)
    set_seed(0)
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "num_mini_batches": 2,
        "num_ppo_epochs": 2,
        "total_episodes": 16,
        "max_completion_length": 8,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
    }
    given: dict[str, Any] = {"reward_funcs": vowels, "train_dataset": prompts()} | (build or {})
    return PPOTrainer(
        model=model, args=PPOConfig(**(defaults | settings)), processing_class=tokenizer, **given
    )


class FixedEngine:
    """Generates completions that depend on the prompt alone, and on how often it came before in
    the same call, so that any split over processes agrees.
    """

    exact_log_probs = False

    def __init__(self, shift: float | None = None) -> None:
        # returned as the log-probability of every token; None returns none
        self.shift = shift

    def generate(self, actor_critic: Any, prompt_ids: Any) -> Rollout:
        """Between 2 and 6 tokens made from the prompt's."""
        rows, finished, seen = [], [], Counter[tuple[int, ...]]()
        for prompt in prompt_ids:
            generator = torch.Generator().manual_seed(sum(prompt) + 7919 * seen[tuple(prompt)])
            seen[tuple(prompt)] += 1
            length = int(torch.randint(2, 7, (1,), generator=generator))
            rows.append(torch.randint(2, 200, (length,), generator=generator))
            finished.append(length < 6)
        log_probs = (
            None if self.shift is None else [torch.full((len(row),), self.shift) for row in rows]
        )
        return Rollout(rows, torch.tensor(finished), log_probs=log_probs)
