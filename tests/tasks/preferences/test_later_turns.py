"""Where the sides of a pair go on for several turns, the assistant's alone are trained."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from hfstack.errors import ConfigError
from hfstack.runs.record import read_run
from hfstack.tasks.preferences.later_turns import AnswersOnly, find_other_turns
from tests.one_training_step import OLD_CHECKPOINTING, ONE_STEP

pytestmark = OLD_CHECKPOINTING
TEMPLATE = (
    "{% for turn in messages %}[{{ turn['role'] }}]{{ turn['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def turns(*contents: str, first: str = "user") -> list[dict[str, str]]:
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


PAIR = {
    "prompt": turns("hi"),
    "chosen": turns("hello", "who?", "a fox", first="assistant"),
    "rejected": turns("go", "why?", "no", first="assistant"),
}


@pytest.fixture
def model(tmp_path: Path, tiny_llama: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def run(run_recipe: Any, recipe: str, model: Path, rows: list[Any], **more: Any) -> str:
    """Train one step on the rows, and return the first one as it was trained."""
    data = model.parent / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        **ONE_STEP,
        "model_name_or_path": model,
        "datasets": data,
        "output_dir": model.parent / "out",
        "eval_fraction": 0,
        "per_device_train_batch_size": 2,
        **more,
    }
    run_recipe(recipe, *(f"--{key}={value}" for key, value in settings.items()))
    return str(read_run(model.parent / "out").example)


@pytest.mark.parametrize("recipe", ["dpo", "kto", "orpo"])
def test_turns_of_the_user_are_read_and_not_trained(run_recipe, model: Path, recipe: str) -> None:
    lines = [line.split(maxsplit=1) for line in run(run_recipe, recipe, model, [PAIR]).split("\n")]
    parts = [(kind, json.loads(text)) for kind, text in lines if kind in ("read", "trained")]
    end = AutoTokenizer.from_pretrained(model).eos_token
    assert parts[:4] == [
        ("read", f"[user]hi{end}[assistant]"),
        ("trained", f"hello{end}"),
        ("read", f"[user]who?{end}[assistant]"),
        ("trained", f"a fox{end}"),
    ]
    if recipe != "kto":
        assert [text for kind, text in parts[4:] if kind == "trained"] == [f"go{end}", f"no{end}"]


def test_what_cannot_be_masked_is_refused(run_recipe, model: Path) -> None:
    with pytest.raises(ConfigError, match="2 answers with turns of the user are longer than --m"):
        run(run_recipe, "orpo", model, [PAIR], max_length=36)
    with pytest.raises(ConfigError, match="--precompute_ref_log_probs: some answers hold turns"):
        more = {"precompute_ref_log_probs": "true", "output_dir": model.parent / "other"}
        run(run_recipe, "dpo", model, [PAIR], **more)


@pytest.mark.parametrize("keeps", ["start", "end"])
def test_a_truncated_answer_is_masked_where_its_turns_are(model: Path, keeps: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    spans = find_other_turns([PAIR], tokenizer)
    answer = next(key for key in spans if tokenizer.decode(key).startswith("hello"))
    ((start, end),) = spans[answer]
    assert tokenizer.decode(answer[start:end]) == f"[user]who?{tokenizer.eos_token}[assistant]"

    lost = 2
    length = 3 + len(answer) - lost  # of a prompt of three tokens

    def collate(examples: list[Any]) -> dict[str, torch.Tensor]:
        mask = [0] * (3 if keeps == "start" else 3 - lost)
        ones = torch.ones(1, length, dtype=torch.long)
        return {
            "attention_mask": ones,
            "completion_mask": torch.tensor([mask + [1] * (length - len(mask))]),
        }

    collate.truncation_mode = f"keep_{keeps}"
    batch = AnswersOnly(collate, spans)([{"prompt_ids": [7, 8, 9], "completion_ids": answer}])
    before = 3 if keeps == "start" else 3 - lost
    trained = batch["completion_mask"][0].tolist()
    assert trained[before:] == [
        int(not start <= index < end) for index in range(len(trained) - before)
    ]


def test_answers_of_one_turn_need_no_mask(model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    row = {"prompt": turns("hi"), "completion": turns("ho", first="assistant"), "label": True}
    assert find_other_turns([row, {"prompt": "hi", "completion": "ho"}], tokenizer) == {}
