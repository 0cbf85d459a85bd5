"""The preferences recipe: answers of the generator, of a model and of files, judged, made noisy,
and split.
"""

import json
from pathlib import Path

import pytest

from hfstack.demo.answers import answers
from hfstack.demo.rules import gold_score
from hfstack.errors import ConfigError, DataError
from hfstack.runs.record import read_run


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_generator_answers_and_the_gold_rule_judges(run_recipe, tmp_path: Path):
    metrics = run_recipe(
        "preferences",
        "--demo_prompts=30",
        "--eval_fraction=0.2",
        "--label_noise=0.2",
        f"--output_dir={tmp_path}",
    )
    train, held_out = read(tmp_path / "train.jsonl"), read(tmp_path / "eval.jsonl")
    assert len(train) == metrics["train_pairs"] > 80 and len(held_out) == metrics["eval_pairs"] > 10
    assert (
        sum(row["flipped"] for row in train) == metrics["flipped_pairs"] == round(0.2 * len(train))
    )
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held_out}
    for row in train[:20]:
        assert row["chosen_score"] == gold_score(row["prompt"], row["chosen"])
        assert (row["chosen_score"] < row["rejected_score"]) == row["flipped"]
    assert all(row["chosen_score"] > row["rejected_score"] for row in held_out)
    assert set(read_run(tmp_path).artifacts) == {"judged", "train", "eval"}


def test_generated_answers_differ_and_the_right_one_is_best():
    better = 0
    for index in range(20):
        row, different = answers(7, index, count=4)
        assert len(set(different)) == 4 and row["completion"] in different
        scores = {text: gold_score(row["prompt"], text) for text in different}
        better += scores[row["completion"]] == max(scores.values())
    assert better >= 19
    assert answers(7, 3) == answers(7, 3) != answers(8, 3)


def test_a_model_answers(run_recipe, tiny_llama: Path, tmp_path: Path):
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": f"Fox {i}"}) + "\n" for i in range(6))
    )
    # untrained, it earns nothing for any answer
    with pytest.raises(DataError, match=r"no pairs in \d+ rows: \d+ ties"):
        run_recipe(
            "preferences",
            f"--model_name_or_path={tiny_llama}",
            f"--datasets={tmp_path / 'prompts.jsonl'}",
            "--eval_fraction=0",
            "--answers_per_prompt=3",
            "--max_new_tokens=6",
            f"--output_dir={tmp_path / 'out'}",
        )
    judged = read(tmp_path / "out" / "judged.jsonl")
    assert {row["prompt"] for row in judged} == {f"Fox {i}" for i in range(6)} and len(judged) <= 18
    assert all(row["rating"] == gold_score(row["prompt"], row["completion"]) for row in judged)


def test_answers_in_the_rows_are_judged(run_recipe, tmp_path: Path):
    row, different = answers(0, 0)
    rows = [{"prompt": row["prompt"], "completion": text} for text in different]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--eval_fraction=0", "--conversational=true", f"--output_dir={tmp_path / 'out'}")
    run_recipe("preferences", f"--datasets={tmp_path / 'rows.jsonl'}", *options)
    (first, *_) = read(tmp_path / "out" / "train.jsonl")
    assert (
        first["prompt"] == [{"role": "user", "content": row["prompt"]}]
        and first["chosen"][0]["role"] == "assistant"
    )


def test_converting_only_reads_rankings(run_recipe, tmp_path: Path):
    rows = [
        {"prompt": f"p{i}", "completions": ["a", "b", "c"], "ranks": [1, 2, 2]} for i in range(10)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--convert_only=true", "--eval_fraction=0.2", f"--output_dir={tmp_path / 'out'}")
    metrics = run_recipe("preferences", f"--datasets={tmp_path / 'rows.jsonl'}", *options)
    assert (metrics["train_pairs"], metrics["eval_pairs"], metrics["ties"]) == (16, 4, 10)
    with pytest.raises(DataError, match="of no kind of preferences"):
        (tmp_path / "rows.jsonl").write_text('{"a": "x"}\n')
        run_recipe(
            "preferences",
            f"--datasets={tmp_path / 'rows.jsonl'}",
            *options[:2],
            f"--output_dir={tmp_path / 'b'}",
        )


def test_bad_settings_are_refused(run_recipe, tmp_path: Path):
    with pytest.raises(ConfigError, match="at least 2"):
        run_recipe("preferences", "--answers_per_prompt=1")
    with pytest.raises(ConfigError, match=r"label_noise must be in \[0, 0.5\]"):
        run_recipe(
            "preferences", "--demo_prompts=3", "--label_noise=0.9", f"--output_dir={tmp_path}"
        )
