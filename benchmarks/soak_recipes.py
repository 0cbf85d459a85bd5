"""The tiny recipes that the soaks start: models with dropout, rows of each form, and flags."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    set_seed,
)

from hfstack.tokens.train_tokenizer import CHAT_TEMPLATE

Flags = dict[str, object]

WORDS = ["fox", "owl", "hen", "cat", "river", "hill", "sun", "ball"]


def training_flags(flags: Flags, *, steps: int, processes: int = 1) -> Flags:
    """Return the flags of a recipe with what all have in common: a short, eventful run."""
    pair: Flags = {"ddp_backend": "gloo", "ddp_timeout": 20} if processes == 2 else {}
    common: Flags = {
        "max_steps": steps,
        "save_strategy": "steps",
        "save_steps": 2,
        "save_total_limit": 2,
        "eval_strategy": "steps",
        "eval_steps": 4,
        "logging_steps": 1,
        "report_to": "none",
        "bf16": "false",
        "dataloader_pin_memory": "false",
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "disable_tqdm": "true",
    }
    return {name: value for name, value in (common | pair | flags).items() if value is not None}


def make_inputs(folder: Path) -> Path:
    """Write a tiny tokenizer, a tiny chat model with dropout, and rows of each form."""
    stories = [
        f"{i}: the {WORDS[i % 8]} met the {WORDS[(i * 3 + 1) % 8]} near the {WORDS[i % 5 + 3]}."
        for i in range(80)
    ]

    # tokenizer
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        stories,
        trainers.BpeTrainer(
            vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=special[0], pad_token=special[1]
    )
    tokenizer.chat_template = CHAT_TEMPLATE

    # models
    set_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
        tie_word_embeddings=True,
        attention_dropout=0.1,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")

    # what gives rewards, and what reads from both sides
    config.num_labels = 1
    LlamaForSequenceClassification(config).save_pretrained(folder / "judge")
    encoder = AutoConfig.for_model(**_architectures(len(tokenizer))["bert"])
    AutoModelForMaskedLM.from_config(encoder, trust_remote_code=False).save_pretrained(
        folder / "encoder"
    )
    for name in ("model", "judge", "encoder"):
        tokenizer.save_pretrained(folder / name)

    # files
    for name, rows in _rows_of_each_form(stories).items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, architecture in _architectures(len(tokenizer)).items():
        (folder / f"{name}.json").write_text(json.dumps(architecture))
    return folder


def _rows_of_each_form(stories: list[str]) -> dict[str, list[dict[str, object]]]:
    """Return rows by the name of their file."""
    return {
        "text": [{"text": story} for story in stories * 4],
        "chat": [
            {"prompt": f"Who is number {i}?", "completion": f"The {WORDS[i % 8]}."}
            for i in range(80)
        ],
        "pairs": [
            {
                "prompt": f"Tell of {i}: ",
                "chosen": f"a kind {WORDS[i % 8]} was happy",
                "rejected": f"a ball {i % 9}",
            }
            for i in range(80)
        ],
        # one target a row
        "labels": [{"text": story, "label": WORDS[i % 2]} for i, story in enumerate(stories)],
        "tags": [
            {"tokens": story.split(), "tags": ["O", "O", "B-X", *["O"] * 6]} for story in stories
        ],
        "questions": [
            {
                "question": f"Who is {i}?",
                "context": story,
                "answers": {"text": [WORDS[i % 8]], "answer_start": [story.index(WORDS[i % 8])]},
            }
            for i, story in enumerate(stories)
        ],
    }


def _architectures(vocabulary: int) -> dict[str, dict[str, Any]]:
    """Return architectures that are trained from scratch, with dropout."""
    gpt2 = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_layer": 2,
        "n_head": 2,
        "n_embd": 64,
        "n_positions": 128,
        "vocab_size": vocabulary,
    }

    bert = {
        "model_type": "bert",
        "architectures": ["BertForMaskedLM"],
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "max_position_embeddings": 128,
        "vocab_size": vocabulary,
    }

    bart = {
        "model_type": "bart",
        "architectures": ["BartForConditionalGeneration"],
        "d_model": 64,
        **{f"{part}_layers": 1 for part in ("encoder", "decoder")},
        **{f"{part}_attention_heads": 2 for part in ("encoder", "decoder")},
        **{f"{part}_ffn_dim": 128 for part in ("encoder", "decoder")},
        "max_position_embeddings": 128,
        "vocab_size": vocabulary,
    }

    return {"gpt2": gpt2, "bert": bert, "bart": bart}


def pretrain_flags(inputs: Path) -> Flags:
    """Return the flags of a GPT-2 from scratch, with dropout everywhere."""
    return {
        "model_name_or_path": inputs / "gpt2.json",
        "tokenizer_name_or_path": inputs / "model",
        "datasets": inputs / "text.jsonl",
        "eval_fraction": 0.1,
        "block_size": 32,
        "per_device_train_batch_size": 4,
        "sample_tokens": 4,
        "warmup_steps": 2,
    }


def sft_flags(inputs: Path) -> Flags:
    """Return the flags of an adapter with dropout, on packed rows."""
    return {
        "model_name_or_path": inputs / "model",
        "datasets": inputs / "chat.jsonl",
        "eval_fraction": 0.1,
        "max_length": 64,
        "packing": "true",
        "per_device_train_batch_size": 2,
        "use_peft": "true",
        "lora_r": 4,
        "lora_dropout": 0.1,
        "lora_target_modules": "all-linear",
        "answer_tokens": 4,
        "activation_checkpointing": "false",
        "gradient_checkpointing": "false",
    }


def reward_flags(inputs: Path) -> Flags:
    """Return the flags of a reward head on a model with dropout."""
    return {
        "model_name_or_path": inputs / "model",
        "datasets": inputs / "pairs.jsonl",
        "eval_fraction": 0.1,
        "per_device_train_batch_size": 2,
        "center_rewards_coefficient": 0.01,
        "activation_checkpointing": "false",
        "gradient_checkpointing": "false",
    }


def pair_flags(inputs: Path) -> Flags:
    """Return the flags of an adapter that is aligned by pairs: DPO, ORPO, KTO."""
    own: Flags = {"packing": None, "answer_tokens": None, "datasets": inputs / "pairs.jsonl"}
    return sft_flags(inputs) | own


def ppo_flags(inputs: Path) -> Flags:
    """Return the flags of PPO with two optimizer steps a rollout.

    The policy is an adapter with dropout, critic and reward are models of their own.
    """
    return {
        "model_name_or_path": inputs / "model",
        "datasets": inputs / "chat.jsonl",
        "eval_fraction": 0.1,
        "as_chat": "false",
        "reward_model": inputs / "judge",
        "dataloader_pin_memory": None,
        "max_steps": None,
        "total_episodes": 64,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "num_mini_batches": 2,
        "num_ppo_epochs": 1,
        "max_completion_length": 6,
        "critic_warmup_rollouts": 0,
        "use_peft": "true",
        "lora_r": 4,
        "lora_dropout": 0.1,
        "lora_target_modules": "all-linear",
    }


def group_flags(inputs: Path) -> Flags:
    """Return the flags of RLOO and GRPO: groups of four answers to a prompt."""
    only_ppo = ("total_episodes", "num_mini_batches", "num_ppo_epochs", "critic_warmup_rollouts")
    flags = ppo_flags(inputs) | {"num_generations": 4} | dict.fromkeys(only_ppo)
    del flags["max_steps"]  # those of all recipes
    return flags


def masked_flags(inputs: Path) -> Flags:
    """Return the flags of a masked model from scratch, which draws other masks in each epoch."""
    own: Flags = {"model_name_or_path": inputs / "bert.json", "sample_tokens": None}
    return pretrain_flags(inputs) | own | {"pseudo_perplexity_texts": 0}


def task_flags(inputs: Path, form: str) -> Flags:
    """Return the flags of a new head on a model with dropout: classes, tags or spans."""
    return {
        "model_name_or_path": inputs / "model",
        "datasets": inputs / f"{form}.jsonl",
        "eval_fraction": 0.1,
        "per_device_train_batch_size": 4,
        "attention_dropout": 0.1,
    }


def span_flags(inputs: Path) -> Flags:
    """Return the flags of a head that finds answers in windows."""
    own: Flags = {"model_name_or_path": inputs / "encoder", "stride": 16}
    return task_flags(inputs, "questions") | own


def seq2seq_flags(inputs: Path) -> Flags:
    """Return the flags of an encoder-decoder from scratch, which generates when it evaluates."""
    return {
        "model_name_or_path": inputs / "bart.json",
        "tokenizer_name_or_path": inputs / "model",
        "datasets": inputs / "chat.jsonl",
        "source_column": "prompt",
        "target_column": "completion",
        "eval_fraction": 0.1,
        "per_device_train_batch_size": 4,
        "predict_with_generate": "true",
        "generation_max_length": 8,
    }


def embed_flags(inputs: Path) -> Flags:
    """Return the flags of a model of search, whose negatives are those of its batch."""
    return {
        "model_name_or_path": inputs / "model",
        "datasets": inputs / "questions.jsonl",
        "query_column": "question",
        "passage_column": "context",
        "eval_fraction": 0.2,
        "per_device_train_batch_size": 4,
    }


def distill_flags(inputs: Path) -> Flags:
    """Return the flags of a student that is its teacher's copy with dropout, on packed rows."""
    own: Flags = {"teacher_model": inputs / "model", "answer_tokens": 4}
    return sft_flags(inputs) | own


RECIPES: dict[str, Callable[[Path], Flags]] = {
    "pretrain_clm": pretrain_flags,
    "sft": sft_flags,
    "reward": reward_flags,
    "dpo": pair_flags,
    "orpo": pair_flags,
    "kto": pair_flags,
    "ppo": ppo_flags,
    "rloo": group_flags,
    "grpo": group_flags,
    "pretrain_mlm": masked_flags,
    "classify": partial(task_flags, form="labels"),
    "tag": partial(task_flags, form="tags"),
    "answer": span_flags,
    "seq2seq": seq2seq_flags,
    "embed": embed_flags,
    "distill": distill_flags,
}
