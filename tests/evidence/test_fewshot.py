"""Few-shot tasks: what is asked, how choices are scored, and what a task file must say."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hfstack.errors import ConfigError, DataError
from hfstack.evidence.fewshot import load_task_rows, load_task_scorer, read_task
from tests.tiny_chat import save_tiny_chat

ROWS = [
    {"question": f"Where is fox {n}?", "options": ["at home", "on the hill"], "right": n % 2}
    for n in range(14)
]
CHOOSE = {
    "datasets": "rows.jsonl",
    "prompt": "Q: {question}\nA:",
    "choices": "options",
    "answer": "right",
    "examples": 2,
}


def write(folder: Path, settings: dict, rows: list[dict] = ROWS) -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "where.yaml").write_text(json.dumps(settings))  # JSON is YAML
    return folder / "where.yaml"


@pytest.fixture
def loaded(tiny_llama: Path, tmp_path: Path):
    folder = save_tiny_chat(tiny_llama, tmp_path / "model")
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(
        folder
    )


def log_probability(model, tokenizer, prompt: str, answer: str) -> tuple[float, int]:
    """Written once more, without padding or batches: the sum over the tokens of the answer."""
    start = tokenizer.eos_token_id
    ids = [start, *tokenizer(prompt + answer, add_special_tokens=False)["input_ids"]]
    shared = len(tokenizer(prompt, add_special_tokens=False)["input_ids"]) + 1
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(logits[i - 1, ids[i]]) for i in range(shared, len(ids))), len(ids) - shared


@pytest.mark.parametrize("normalise", ["none", "tokens", "bytes"])
def test_choices_are_scored_behind_the_examples(loaded, tmp_path: Path, normalise: str) -> None:
    task = read_task(write(tmp_path, CHOOSE | {"normalise": normalise}))
    found = load_task_scorer(*loaded, task).score(load_task_rows(task))

    # the first two rows are the examples, and are not asked
    assert found.places == list(range(2, 14)) and found.metrics["eval_rows"] == 12
    shots = "".join(
        f"Q: {row['question']}\nA: {row['options'][row['right']]}\n\n" for row in ROWS[:2]
    )
    for row, answer in zip(ROWS[2:5], found.answers, strict=False):
        wanted = []
        for option in row["options"]:
            prompt = f"{shots}Q: {row['question']}\nA:"
            total, tokens = log_probability(*loaded, prompt, f" {option}")
            wanted.append(
                total / {"none": 1, "tokens": tokens, "bytes": len(option.encode())}[normalise]
            )
        assert answer["log_probs"] == pytest.approx(wanted, abs=1e-4)
        assert answer["chosen"] == row["options"][wanted.index(max(wanted))]
        assert answer["true"] == row["options"][row["right"]]

    right = [answer["chosen"] == answer["true"] for answer in found.answers]
    assert found.right == right and found.metrics["eval_accuracy"] == sum(right) / 12
    assert found.metrics["eval_chance_accuracy"] == 0.5
    assert 0 <= found.metrics["eval_calibration_error"] <= 1


def test_conversations_and_generated_answers(loaded, tmp_path: Path) -> None:
    settings = {k: v for k, v in CHOOSE.items() if k != "choices"}
    rows = [row | {"right": "at home"} for row in ROWS]
    task = read_task(write(tmp_path, settings | {"max_new_tokens": 6, "stop": []}, rows))
    found = load_task_scorer(*loaded, task, kind="chat").score(load_task_rows(task, max_rows=5))
    assert len(found.answers) == 5 and found.metrics["eval_rows"] == 5
    said = [answer["answer"] for answer in found.answers]
    assert found.right == [text == "at home" for text in said] and any(said)

    # what it says is right when it is what the rows call right
    rows = [row | {"right": text or "x"} for row, text in zip(ROWS[2:7], said, strict=True)]
    task = read_task(
        write(tmp_path, settings | {"examples": 0, "max_new_tokens": 6, "stop": []}, rows)
    )
    alone = load_task_scorer(*loaded, task, kind="chat").score(load_task_rows(task))
    assert alone.metrics["eval_exact_match"] == sum(alone.right or []) / 5
    assert not math.isnan(alone.metrics["eval_exact_match_low"])


def test_mistakes_of_a_task_file_end_in_one_line(loaded, tmp_path: Path) -> None:
    def refused(error: type[Exception], match: str, settings: dict, rows=ROWS) -> None:
        with pytest.raises(error, match=match) as caught:
            task = read_task(write(tmp_path, settings, rows))
            load_task_scorer(*loaded, task).score(load_task_rows(task))
        assert "\n" not in str(caught.value)

    without = {k: v for k, v in CHOOSE.items() if k != "choices"}
    refused(ConfigError, "where.yaml: names no choices .* and no max_new_tokens", without)
    refused(ConfigError, "unknown entry 'shots'; known: answer, choices", CHOOSE | {"shots": 2})
    refused(ConfigError, "no entry 'prompt'", CHOOSE | {"prompt": ""})
    refused(ConfigError, "examples must be 0 or more, got -1", CHOOSE | {"examples": -1})
    refused(ConfigError, "normalise is 'words', not one of none", CHOOSE | {"normalise": "words"})
    refused(DataError, "no column 'where', found", CHOOSE | {"prompt": "{where}"})
    refused(DataError, "14 rows are too few for 14 examples", CHOOSE | {"examples": 14})
    odd = [*ROWS[:13], ROWS[13] | {"right": 2}]
    refused(DataError, "right is 2, which is none of the choices at home, on the hill", CHOOSE, odd)
    one = [row | {"options": ["at home"]} for row in ROWS]
    refused(DataError, r"options is .*'at home'.*, not a list of two choices", CHOOSE, one)
    refused(
        DataError, "more than the model's 128: ask with fewer examples", CHOOSE | {"examples": 8}
    )
    with pytest.raises(ConfigError, match="none.yaml: no such file"):
        read_task(tmp_path / "none.yaml")

    # rows that are whole questions are a task of their own
    rows = tmp_path / "asked.jsonl"
    rows.write_text(json.dumps({"prompt": "A or B?", "choices": ["A", "B"], "answer": "B"}) + "\n")
    task = read_task(rows)
    assert (task.name, task.choices, task.examples) == ("asked", "choices", 0)
    assert len(load_task_scorer(*loaded, task).score(load_task_rows(task)).answers) == 1
    rows.write_text('{"question": "A or B?"}\n')
    with pytest.raises(ConfigError, match="rows need `prompt`, `answer` .*, found question"):
        read_task(rows)
