"""Tiny models, rows and settings of every recipe that trains, for tests that try each of them."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from transformers import (
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    LlamaForSequenceClassification,
    set_seed,
)

from tests.tiny_chat import save_tiny_chat
from tests.tiny_encoder import save_tiny_bert, tiny_bert_tokenizer

Row = dict[str, Any]
ENCODERS = ("pretrain_mlm", "classify", "tag", "answer", "embed")
ALIGNED = {"max_length": 96, "activation_checkpointing": "false", "probe_rows": 0}
ONLINE = {"max_completion_length": 4, "as_chat": "false", "activation_checkpointing": "false"}


def words(number: int, count: int) -> str:
    """Text of as many words as asked for, another for each number."""
    names = ["fox", "owl", "river", "ball", "hill", "sun", "forest", "girl"]
    chosen = [names[(number * 5 + place * 3) % 8] for place in range(count - 1)]
    return " ".join([f"w{number}", *chosen])


def question(number: int) -> Row:
    """A question whose answer stands at the end of a text, of another length for each number."""
    text = f"{words(number, 1 + number % 7)} it was red"
    answers = {"text": ["red"], "answer_start": [len(text) - 3]}
    return {"id": str(number), "question": "it was ?", "context": text, "answers": answers}


ROWS: dict[str, Callable[[int], Row]] = {
    "pretrain_clm": lambda n: {"text": words(n, 15)},
    "pretrain_mlm": lambda n: {"text": words(n, 15)},
    "classify": lambda n: {"text": words(n, 1 + n % 11), "label": "ab"[n % 2]},
    "tag": lambda n: {
        "tokens": words(n, 1 + n % 11).split(),
        "tags": (["O", "B-X"] * 20)[: 1 + n % 11],
    },
    "answer": question,
    "seq2seq": lambda n: {"source": words(n, 1 + n % 11), "target": words(n + 1, 1 + n % 7)},
    "sft": lambda n: {"prompt": f"{words(n, 2)}:", "completion": f" {words(n, 1 + n % 11)}"},
    "embed": lambda n: {"query": words(n, 3), "passage": words(n, 1 + n % 11)},
    "dpo": lambda n: {
        "prompt": f"{n}:",
        "chosen": f" {words(n, 2)}",
        "rejected": f" {words(n + 1, 1 + n % 7)}",
    },
    "kto": lambda n: {
        "prompt": f"{n}:",
        "completion": f" {words(n, 1 + n % 11)}",
        "label": n % 2 == 0,
    },
    "ppo": lambda n: {"prompt": f"Tell of {n} owls."},
}
ROWS["distill"] = ROWS["sft"]
ROWS["orpo"] = ROWS["reward"] = ROWS["dpo"]
ROWS["rloo"] = ROWS["grpo"] = ROWS["ppo"]

OWN: dict[str, dict[str, Any]] = {
    "pretrain_clm": {"block_size": 16, "sample_tokens": 2},
    "pretrain_mlm": {"block_size": 16},
    "classify": {"calibrate": "false"},
    "tag": {},
    "answer": {"max_length": 32, "stride": 8, "max_answer_tokens": 4},
    "seq2seq": {"max_source_length": 32, "max_target_length": 24},
    "sft": ALIGNED | {"answer_rows": 0, "answer_tokens": 4},
    "distill": ALIGNED | {"answer_rows": 0, "answer_tokens": 4},
    "embed": {},
    "reward": {"max_length": 96, "activation_checkpointing": "false"},
    "dpo": ALIGNED | {"sample_tokens": 2},
    "kto": ALIGNED | {"sample_tokens": 2},
    "orpo": ALIGNED | {"sample_tokens": 2},
    "ppo": ONLINE | {"total_episodes": 8, "num_mini_batches": 2, "num_ppo_epochs": 1},
    "rloo": ONLINE | {"num_generations": 2},
    "grpo": ONLINE | {"num_generations": 2},
}


def save_models(folder: Path, tiny_llama: Path) -> None:
    """Save the models that the recipes begin with."""
    save_tiny_bert(folder / "bert")
    save_tiny_chat(tiny_llama, folder / "llama")
    save_tiny_chat(tiny_llama, folder / "teacher", seed=1)
    set_seed(0)
    scorer = LlamaForSequenceClassification.from_pretrained(folder / "llama", num_labels=1)
    scorer.save_pretrained(folder / "reward")
    AutoTokenizer.from_pretrained(folder / "llama").save_pretrained(folder / "reward")

    tokenizer: Any = tiny_bert_tokenizer()
    set_seed(0)
    config = BartConfig(
        vocab_size=len(tokenizer),
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        max_position_embeddings=40,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.sep_token_id,
        forced_eos_token_id=tokenizer.sep_token_id,
        bos_token_id=tokenizer.cls_token_id,
        decoder_start_token_id=tokenizer.sep_token_id,
    )
    BartForConditionalGeneration(config).save_pretrained(folder / "bart")
    tokenizer.save_pretrained(folder / "bart")


def save_rows(folder: Path, recipe: str, *, train: Iterable[int], held_out: Iterable[int]) -> None:
    """Save the rows of these numbers."""
    for part, numbers in (("train", train), ("eval", held_out)):
        rows = "".join(json.dumps(ROWS[recipe](number)) + "\n" for number in numbers)
        (folder / f"{recipe}.{part}.jsonl").write_text(rows)


def tiny_settings(recipe: str, inputs: Path, output_dir: Path, **changes: Any) -> dict[str, Any]:
    """Return the options of a tiny run on what `save_models` and `save_rows` saved."""
    model = "bart" if recipe == "seq2seq" else "bert" if recipe in ENCODERS else "llama"
    settings = {
        "model_name_or_path": inputs / model,
        "datasets": inputs / f"{recipe}.train.jsonl",
        "eval_datasets": inputs / f"{recipe}.eval.jsonl",
        "output_dir": output_dir,
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "bf16": "false",
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        **OWN[recipe],
    }
    if recipe not in ("ppo", "rloo", "grpo"):  # these read prompts by their number
        settings["dataloader_pin_memory"] = "false"
    if recipe == "distill":
        settings["teacher_model"] = inputs / "teacher"
    if recipe == "grpo":
        settings["reward_model"] = inputs / "reward"
    if recipe == "ppo":
        del settings["max_steps"]
    return settings | changes
