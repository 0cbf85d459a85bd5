"""What TRL's online trainers would train wrongly is refused before the first step."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, set_seed
from trl import RLOOConfig

from hfstack.data.sources import DataArgs, Source
from hfstack.errors import CheckpointError, ConfigError, DataError
from hfstack.tasks.rl.prompts import (
    CompletionMetrics,
    check_groups,
    check_policy,
    check_prompts,
    check_start,
    encode_prompt,
    last_evaluation,
    left_padding_difference,
    load_prompts,
    summarize,
    truncate_prompt,
)


@pytest.fixture
def llama(tiny_llama: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(tiny_llama), AutoTokenizer.from_pretrained(
        tiny_llama
    )


@pytest.fixture
def gpt2(tiny_tokenizer) -> GPT2LMHeadModel:
    """Learned absolute positions; untrained ones are small, and are still found apart from
    rounding."""
    set_seed(0)
    size = len(tiny_tokenizer)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=size, n_positions=64, n_embd=32, n_layer=2, n_head=2)
    )


def test_left_padding_matters_to_absolute_positions_alone(
    llama: tuple[Any, Any], gpt2: GPT2LMHeadModel
) -> None:
    difference, tolerance = left_padding_difference(llama[0])
    assert difference < tolerance / 10
    difference, tolerance = left_padding_difference(gpt2)
    assert difference > tolerance
    assert gpt2.training == GPT2LMHeadModel(gpt2.config).training, (
        "the model is left in the mode it had"
    )


def test_rounding_in_16_bits_is_no_reason_to_refuse(llama: tuple[Any, Any]) -> None:
    difference, tolerance = left_padding_difference(llama[0].to(torch.bfloat16))
    assert difference < tolerance


def test_gpt2_is_refused_in_one_line(gpt2: GPT2LMHeadModel, tiny_tokenizer) -> None:
    with pytest.raises(
        ConfigError, match=r"runs/gpt2: padding on the left changes .* absolute position embeddings"
    ):
        check_policy(gpt2, tiny_tokenizer, "runs/gpt2")


def test_trls_log_probabilities_of_gpt2_are_wrong_under_left_padding(gpt2: GPT2LMHeadModel) -> None:
    """The reason for the refusal: the positions start at the padding, as TRL passes no
    position_ids.
    """
    gpt2.eval()
    ids, padding = torch.arange(2, 12)[None], torch.zeros((1, 6), dtype=torch.long)
    mask = torch.cat([padding, torch.ones_like(ids)], dim=1)
    bare = gpt2(input_ids=ids).logits
    padded = gpt2(input_ids=torch.cat([padding, ids], 1), attention_mask=mask)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    repaired = gpt2(
        input_ids=torch.cat([padding, ids], 1), attention_mask=mask, position_ids=positions
    )
    assert not torch.allclose(padded.logits[:, 6:], bare, atol=1e-3)
    assert torch.allclose(repaired.logits[:, 6:], bare, atol=1e-5)


def test_a_policy_without_weights_or_ending_is_refused(
    llama: tuple[Any, Any], tmp_path: Path
) -> None:
    model, tokenizer = llama
    check_policy(model, tokenizer, "runs/sft")
    with pytest.raises(CheckpointError, match="has no weights"):
        check_start("recipes/architectures/llama-5m.json")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(
        CheckpointError, match="is an adapter: the KL would be measured to its base"
    ):
        check_start(str(tmp_path))
    tokenizer.eos_token = None
    model.generation_config.eos_token_id = None
    with pytest.raises(ConfigError, match="no answer would ever end"):
        check_policy(model, tokenizer, "runs/sft")


@pytest.fixture
def load(tmp_path: Path):
    """Write rows and load them as prompts; keyword arguments go to DataArgs."""

    def call(
        rows: list[dict[str, Any]], *, as_chat: bool = False, **settings: Any
    ) -> dict[str, Any]:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        args = DataArgs(datasets=[Source(str(path))], **{"eval_fraction": 0, **settings})
        return load_prompts(
            args, recipe="rloo", as_chat=as_chat, quarantine_file=tmp_path / "bad.jsonl"
        )

    return call


def test_prompts_keep_their_columns_and_become_turns(load) -> None:
    rows = [{"prompt": f"Tell {index}.", "answer": str(index)} for index in range(20)]
    splits = load(rows, as_chat=True, eval_fraction=0.2)
    assert splits["train"][0]["prompt"][0]["role"] == "user"
    assert set(splits["train"].column_names) == {"prompt", "answer"}
    found = {name: {row["prompt"][0]["content"] for row in split} for name, split in splits.items()}
    assert not found["train"] & found["eval"] and len(found["train"] | found["eval"]) == 20
    assert (
        load([{"question": "Why?", "prompt": "x"}], text_column="question")["train"]["prompt"][0]
        == "Why?"
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "Why?"}, r"rloo needs the columns prompt; found: question; .*--text_column"),
        ({"prompt": " "}, "train row 1, column 'prompt': the prompt is empty"),
        (
            {"prompt": [{"role": "assistant", "content": "hi"}]},
            "the conversation ends with an answer",
        ),
        ({"prompt": 3}, r"a prompt is text or a list of messages \{role, content\}, got '3'"),
    ],
)
def test_rows_that_hold_no_prompt_are_refused(load, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load([row])


def test_prompts_that_leave_no_room_are_refused(llama: tuple[Any, Any]) -> None:
    model, tokenizer = llama
    rows = Dataset.from_dict({"prompt": ["The fox", "z" * 80]})
    check_prompts({"train": rows}, tokenizer, model, max_completion_length=40)
    with pytest.raises(
        DataError, match=r"1 of 2 prompts, first row 2 with 80 tokens, leave less .* context of 128"
    ):
        check_prompts({"train": rows}, tokenizer, model, max_completion_length=60)
    # they are cut
    check_prompts({"train": rows}, tokenizer, model, max_completion_length=60, max_prompt_length=68)
    with pytest.raises(DataError, match="held-out prompts are not trained on"):
        check_prompts({"train": rows, "eval": rows}, tokenizer, model, max_completion_length=8)


@pytest.mark.parametrize(
    ("token_ids", "longest", "bos", "kept"),
    [
        ([1, 5, 6, 7], None, 1, [1, 5, 6, 7]),
        ([1, 5, 6, 7], 4, 1, [1, 5, 6, 7]),
        ([1, 5, 6, 7], 3, 1, [1, 6, 7]),
        ([1, 5, 6, 7], 1, 1, [1]),
        ([4, 5, 6, 7], 3, 1, [5, 6, 7]),
        ([4, 5, 6, 7], 2, None, [6, 7]),
        ([], 2, 1, []),
    ],
)
def test_a_prompt_is_cut_at_its_beginning_but_keeps_its_bos(
    token_ids: list[int], longest: int | None, bos: int | None, kept: list[int]
) -> None:
    assert truncate_prompt(token_ids, longest, bos) == kept


def test_conversations_need_a_template(llama: tuple[Any, Any]) -> None:
    with pytest.raises(
        ConfigError, match="no chat template; for plain prompts set --as_chat false"
    ):
        encode_prompt([{"role": "user", "content": "hi"}], llama[1])


def test_batches_hold_whole_groups(tmp_path: Path) -> None:
    args = RLOOConfig(
        output_dir=str(tmp_path),
        num_generations=4,
        per_device_train_batch_size=8,
        per_device_eval_batch_size=6,
        gradient_accumulation_steps=2,
        bf16=False,
        use_cpu=True,
    )
    rows = Dataset.from_dict({"prompt": ["a"] * 4})
    check_groups({"train": rows}, args)
    with pytest.raises(
        ConfigError,
        match="--per_device_eval_batch_size 6 on 1 process.* no multiple of the 4 answers",
    ):
        check_groups({"train": rows, "eval": rows}, args)
    with pytest.raises(DataError, match="3 prompts to train on, but one generation batch takes 4"):
        check_groups({"train": rows.select(range(3))}, args)


class State:
    """What a callback sees of the trainer."""

    def __init__(self) -> None:
        self.log_history: list[dict[str, Any]] = [{}]
        self.global_step = 3


def test_kl_and_endings_of_a_completion_are_added(caplog: pytest.LogCaptureFixture) -> None:
    state: Any = State()
    logs = {"kl": 0.02, "completions/mean_length": 50.0, "completions/clipped_ratio": 0.25}
    none: Any = None
    CompletionMetrics().on_log(none, state, none, logs=logs)
    assert logs["kl_per_completion"] == pytest.approx(1.0) and logs["ended_share"] == 0.75
    assert state.log_history[-1] == {
        "kl_per_completion": logs["kl_per_completion"],
        "ended_share": 0.75,
    }
    evaluated = {"eval_completions/clipped_ratio": 1.0, "eval_completions/mean_length": 8.0}
    CompletionMetrics().on_log(none, state, none, logs=evaluated)
    assert evaluated["eval_ended_share"] == 0.0


def test_curves_are_summarized_by_their_ends() -> None:
    history = [
        {"step": 0, "eval_reward": 0.1, "eval_ended_share": 0.5},
        {"step": 1, "reward": 0.2, "kl": 0.0},
        {"step": 2, "reward": 0.4, "kl": 0.1, "kl_per_completion": 2.0},
        {"step": 2, "eval_reward": 0.5},
    ]
    expected = {
        "start_reward": 0.1,
        "start_ended_share": 0.5,
        "reward": 0.4,
        "kl": 0.1,
        "kl_per_completion": 2.0,
    }
    assert summarize(history) == expected
    assert last_evaluation(history, 2) == {"eval_reward": 0.5}
    assert last_evaluation(history, 3) is None and last_evaluation([], 0) is None
    assert summarize([{"step": 5, "eval_reward": 1.0}]) == {}, "a resumed run has no start"
