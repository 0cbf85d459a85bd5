"""The probe sees packed documents that leak, and the Trainer gets what was prepared."""

import copy
from pathlib import Path

from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from hfstack.tasks.sft.columns import Columns, convert_rows
from hfstack.tasks.sft.packing import PackedCollator
from hfstack.tasks.sft.setup import (
    TokenCount,
    collator_for,
    sft_trainer_settings,
    step_costs,
    template_problems,
    training_template,
)
from tests.packed_rows import FIRST, SECOND, packed_row


def test_flash_attention_gets_rows_joined(
    tiny_llama: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    packed, padded = (
        SFTConfig("out", packing=packing, bf16=False, pad_to_multiple_of=8)
        for packing in (True, False)
    )
    assert isinstance(collator_for(model, tiny_tokenizer, packed), PackedCollator)
    by_row = collator_for(model, tiny_tokenizer, padded)
    assert not by_row.padding_free
    rows = [{"input_ids": [2] * count, "labels": [2] * count} for count in (3, 9)]
    assert by_row(rows)["input_ids"].shape == (2, 16)
    model.config._attn_implementation_internal = "kernels-community/flash-attn2"
    joined = collator_for(model, tiny_tokenizer, packed)
    assert isinstance(joined, DataCollatorForLanguageModeling)
    batch = joined([packed_row(FIRST, SECOND), packed_row(SECOND)])
    assert batch["input_ids"].shape == (1, 14) and "attention_mask" not in batch
    assert batch["cu_seq_lens_q"].tolist() == [0, 6, 10, 14]


def test_a_template_of_a_known_family_is_marked_only_while_encoding(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    from trl.chat_template_utils import has_generation_markers, qwen2_5_chat_template

    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = qwen2_5_chat_template
    with training_template(tokenizer, assistant_only=True):
        assert has_generation_markers(str(tokenizer.chat_template))
    assert tokenizer.chat_template == qwen2_5_chat_template
    with training_template(tokenizer, assistant_only=False):
        assert tokenizer.chat_template == qwen2_5_chat_template


def test_thoughts_that_a_template_drops_are_a_problem(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    from trl.chat_template_utils import qwen3_chat_template

    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = qwen3_chat_template
    ask = {"role": "user", "content": "Who?"}
    answer = {"role": "assistant", "content": "The fox.", "reasoning_content": "I look."}
    given = Dataset.from_list([{"messages": [ask, answer, ask, answer]}] * 3)
    rows = {"train": convert_rows(given, Columns(), as_chat=True)}

    # Qwen3's own template keeps the last thought alone; TRL's variant for training keeps all
    problems = template_problems(rows, tokenizer, assistant_only=False)
    assert "3 of 3 conversations, first row 1: 3 x thought" in str(
        problems["every train turn is rendered"]
    )
    with training_template(tokenizer, assistant_only=True):
        assert not any(template_problems(rows, tokenizer, assistant_only=True).values())


def test_tokens_are_counted_over_all_rows_of_a_batch(tmp_path: Path) -> None:
    state = TrainerState(global_step=3, log_history=[{"loss": 1.0, "num_tokens": 30.0}])
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    logs = {"loss": 1.0, "num_tokens": 30.0}
    TokenCount(40).on_log(arguments, state, TrainerControl(), logs=logs)
    assert logs == state.log_history[-1] == {"loss": 1.0, "num_tokens": 120.0}


def test_settings_and_costs(tiny_llama: Path, tmp_path: Path) -> None:
    settings = SFTConfig(
        str(tmp_path),
        packing=True,
        assistant_only_loss=True,
        bf16=False,
        use_cpu=True,
        report_to="none",
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,
        activation_checkpointing=False,
    )
    handed = sft_trainer_settings(settings)
    assert handed.dataset_kwargs == {"skip_prepare_dataset": True} and not handed.packing
    assert settings.packing and settings.assistant_only_loss  # ours stay as the user gave them
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    packed = Dataset.from_list([packed_row(FIRST, SECOND), packed_row(SECOND)])
    costs = step_costs(packed, model, settings, adapter=False)
    assert costs["tokens_per_step"] == 7 * 2 * 3  # rows of 10 and 4 tokens
    assert (
        step_costs(packed, model, settings, adapter=True)["flops_per_token"]
        == costs["flops_per_token"] * 2 / 3
    )
    assert AutoTokenizer.from_pretrained(tiny_llama).pad_token_id == 1
