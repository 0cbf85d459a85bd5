"""Question answering end to end on a tiny encoder: windows, no answer, what it writes, and what is
wrong with rows.
"""

import json
from pathlib import Path

import pytest

from hfstack.errors import ConfigError, DataError
from hfstack.runs.record import read_run
from tests.tiny_encoder import save_tiny_bert

COLOURS = ["red", "small", "low", "happy", "brave"]


def make_rows(count: int, *, unanswerable: bool = False) -> list[dict]:
    """What was the ...? is answered by the word after it; the text says it once, somewhere in other
    words.
    """
    rows = []
    for number in range(count):
        colour, filler = (
            COLOURS[number % 5],
            "the owl saw the ball near the river . " * (2 * (number % 2)),
        )
        context = f"{number} {filler}the fox was {colour} . they went home ."
        answers = {"text": [colour], "answer_start": [context.index(f" {colour} .") + 1]}
        if unanswerable and number % 3 == 0:
            context, answers = (
                context.replace(f" {colour} .", " kind ."),
                {"text": [], "answer_start": []},
            )
        rows.append(
            {
                "id": f"q{number}",
                "question": "the fox was ?",
                "context": context,
                "answers": answers,
            }
        )
    return rows


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    save_tiny_bert(folder / "bert")
    write(folder / "train.jsonl", make_rows(60))
    return folder


@pytest.fixture
def answer(run_recipe, inputs: Path, tmp_path: Path):
    """Call the recipe with small settings; keyword arguments override them."""

    def call(**changes: object) -> dict[str, float]:
        settings = {
            "model_name_or_path": inputs / "bert",
            "datasets": inputs / "train.jsonl",
            "eval_fraction": 0.2,
            "output_dir": tmp_path / "out",
            "max_steps": 2,
            "per_device_train_batch_size": 16,
            "learning_rate": 5e-3,
            "report_to": "none",
            "bf16": "false",
            "dataloader_pin_memory": "false",
            "save_strategy": "no",
            "max_length": 32,
            "stride": 8,
            "max_answer_tokens": 4,
        } | changes
        return run_recipe("answer", *(f"--{k}={v}" for k, v in settings.items() if v is not None))

    return call


def test_learns_measures_and_predicts_the_same(answer, run_recipe, tmp_path: Path) -> None:
    metrics = answer(max_steps=50, train_sampling_strategy="group_by_length")
    assert (
        metrics["eval_exact_match"] > 70
        and metrics["eval_answer_f1"] >= metrics["eval_exact_match"]
    )
    assert (
        metrics["eval_answer_f1_low"] <= metrics["eval_answer_f1"] <= metrics["eval_answer_f1_high"]
    )
    assert (
        metrics["baseline_first_sentence_answer_f1"] < 50
        and metrics["baseline_likest_sentence_answer_f1"] < 50
    )
    record = read_run(tmp_path / "out")
    rows = [
        json.loads(line)
        for line in (tmp_path / "out" / record.artifacts["predictions"]).read_text().splitlines()
    ]
    assert len(rows) == metrics["eval_questions"] == 12
    contexts = {row["id"]: row["context"] for row in make_rows(60)}
    for row in rows:
        assert (
            contexts[row["id"]][row["start"] :].startswith(row["answer"])
            and len(row["candidates"]) == 5
        )
        assert sum(candidate["probability"] for candidate in row["candidates"]) == pytest.approx(
            1, abs=1e-4
        )

    asked = write(
        tmp_path / "asked.jsonl",
        [{"id": r["id"], "question": "the fox was ?", "context": contexts[r["id"]]} for r in rows],
    )
    run_recipe(
        "predict",
        f"--model_name_or_path={tmp_path / 'out'}",
        f"--datasets={asked}",
        "--keep_columns=id",
        f"--output_dir={tmp_path / 'predicted'}",
    )
    again = [
        json.loads(line)
        for line in (tmp_path / "predicted" / "predictions.jsonl").read_text().splitlines()
    ]
    assert [(row["id"], row["answer"], row["start"]) for row in again] == [
        (row["id"], row["answer"], row["start"]) for row in rows
    ]


def test_an_adapter_is_saved_with_its_head_and_answers_as_it_measured(
    answer, run_recipe, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    answer(max_steps=30, use_peft="true", lora_r=4, learning_rate=2e-2)
    out = tmp_path / "out"
    assert {"base_model.model.qa_outputs.weight"} < set(
        load_file(out / "adapter_model.safetensors")
    )
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    contexts = {row["id"]: row["context"] for row in make_rows(60)}
    new = write(
        tmp_path / "new.jsonl", [line | {"context": contexts[line["id"]]} for line in lines]
    )
    settings = {"model_name_or_path": out, "datasets": new, "output_dir": tmp_path / "predicted"}
    run_recipe("predict", *(f"--{name}={value}" for name, value in settings.items()))
    again = [
        json.loads(line)
        for line in (tmp_path / "predicted" / "predictions.jsonl").read_text().splitlines()
    ]
    for line, other in zip(lines, again, strict=True):
        assert (other["answer"], other["start"]) == (line["answer"], line["start"])
        assert other["probability"] == pytest.approx(line["probability"], abs=2e-6)


def test_questions_without_answer(answer, tmp_path: Path) -> None:
    path = write(tmp_path / "some.jsonl", make_rows(90, unanswerable=True))
    metrics = answer(datasets=path, max_steps=60)
    assert {"eval_exact_match_answerable", "eval_exact_match_unanswerable"} <= set(metrics)
    assert metrics["eval_exact_match"] > 60 and metrics["eval_exact_match_unanswerable"] > 60
    parts = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    never = answer(datasets=path, no_answer_threshold=1000, output_dir=tmp_path / "never", **parts)
    always = answer(datasets=path, no_answer_threshold=-1000, output_dir=tmp_path / "always")
    assert (
        never["eval_exact_match_unanswerable"] == 0
        and always["eval_exact_match_unanswerable"] == 100
    )
    assert always["eval_exact_match_answerable"] == 0
    lines = (tmp_path / "always" / "predictions.jsonl").read_text().splitlines()
    assert all(
        json.loads(line)["answer"] == "" and json.loads(line)["start"] == -1 for line in lines
    )


def test_an_answer_that_is_not_in_its_context_is_named_by_file_and_line(
    answer, tmp_path: Path, caplog
) -> None:
    rows = make_rows(12)
    rows[6]["answers"]["answer_start"] = [3]
    rows[9]["answers"] = {"text": ["purple"], "answer_start": [3]}
    path = write(tmp_path / "bad.jsonl", rows)
    with pytest.raises(
        DataError,
        match=r"bad\.jsonl line 7: the answer 'small' is not in its context at character 3",
    ) as e:
        answer(datasets=path, eval_fraction=0)
    assert "--bad_answers skip or repair" in str(e.value) and "\n" not in str(e.value)
    for way, left in (("skip", 10), ("repair", 11), ("mend", 11)):
        metrics = answer(datasets=path, bad_answers=way, eval_fraction=0, output_dir=tmp_path / way)
        assert metrics["train_questions"] == left


def test_bad_input_is_one_line(answer, tmp_path: Path) -> None:
    empty = write(tmp_path / "empty.jsonl", [make_rows(1)[0] | {"question": " "}])
    other = write(tmp_path / "other.jsonl", [{"text": "a", "label": 1}])
    for changes, error, message in [
        ({"datasets": empty}, DataError, r"empty\.jsonl line 1: the question is empty, or no text"),
        (
            {"datasets": other},
            DataError,
            "no column 'question', found text, label; set --question_column",
        ),
        ({"max_length": 65}, ConfigError, "--max_length 65 is longer than the model's context"),
        ({"stride": 30}, ConfigError, "--stride 30 leaves no room in windows of 32 tokens"),
        ({"stride": -1}, ConfigError, "--stride must be 0 or above, got -1"),
        (
            {"metric_for_best_model": "eval_f1"},
            ConfigError,
            "does not fit this task: choose exact_match, answer_f1",
        ),
        ({"n_best": 0}, ConfigError, "--n_best must be at least 1, got 0"),
        ({"rules": "bleu"}, ConfigError, "rules"),
        ({"bad_answers": "drop"}, ConfigError, "bad_answers"),
        (
            {"use_peft": "true", "model_name_or_path": "bert-1m.json"},
            ConfigError,
            "is an architecture",
        ),
        (
            {"load_in_4bit": "true"},
            ConfigError,
            "quantised weights cannot be trained; add --use_peft",
        ),
    ]:
        with pytest.raises(error, match=message) as caught:
            answer(
                **{"eval_fraction": 0} | changes,
                output_dir=tmp_path / str(len(list(tmp_path.iterdir()))),
            )
        assert "\n" not in str(caught.value)


@pytest.mark.shared
def test_chinese_questions_are_scored_as_cmrc_does(
    answer, shared_data: Path, tmp_path: Path, run_recipe
) -> None:
    cmrc = shared_data / "qa" / "cmrc2018.jsonl.gz"
    run_recipe(
        "tokenizer",
        f"--datasets={cmrc}",
        "--text_column=context",
        "--kind=wordpiece",
        "--vocab_size=4000",
        "--max_rows=300",
        f"--output_dir={tmp_path / 'tokenizer'}",
    )
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=256,
    )
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    metrics = answer(
        model_name_or_path=tmp_path / "bert",
        datasets=cmrc,
        max_rows=60,
        max_length=256,
        stride=64,
        max_answer_tokens=40,
    )
    assert 0 <= metrics["eval_exact_match"] <= metrics["eval_answer_f1"] <= 100
    # by characters: SQuAD's rules would see one word
    assert metrics["baseline_first_sentence_answer_f1"] > 5
