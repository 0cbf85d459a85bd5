"""The classify recipe end to end: kinds of labels, pairs, adapters, reloading, and what it
refuses."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer
from trl import ModelConfig

from hfstack.errors import ConfigError, DataError, MissingExtraError
from hfstack.runs.record import read_run
from hfstack.tasks.classification.model import load_trained_classifier, read_classifier_info
from hfstack.tasks.classification.predict import answers_of_row, classify_logits
from hfstack.tokens.text_rows import encode_texts
from tests.conftest import ROOT
from tests.tiny_encoder import save_tiny_bert

WORDS = {"good": ["kind", "happy", "brave"], "bad": ["small", "red", "low"]}


def sentence(label: str, number: int) -> str:
    """A sentence whose label is in one of its words; no two are equal."""
    generator = random.Random(number)
    rest = " ".join(
        generator.choice(["the", "fox", "hill", "owl", "was", "time"])
        for _ in range(3 + number % 9)
    )
    return f"{generator.choice(WORDS[label])} {rest} {'a' * (number % 7)}"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def rows_file(tmp_path: Path) -> Callable[..., Path]:
    """Write 60 rows, each changed by a function, to a file."""

    def write(
        change: Callable[[dict, int], dict] = lambda row, number: row, name: str = "rows.jsonl"
    ) -> Path:
        rows = []
        for number in range(60):
            label = ("good", "bad")[number % 2]
            rows.append(change({"text": sentence(label, number), "label": label}, number))
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def classify(run_recipe, bert: Path, rows_file, tmp_path: Path):
    """Call the recipe with small settings; keyword arguments override them."""

    def call(*more: str, **changes: object) -> dict[str, float]:
        settings = {
            "model_name_or_path": bert,
            "eval_fraction": 0.4,
            "output_dir": tmp_path / "out",
            "max_steps": 3,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-2,
            "report_to": "none",
            "bf16": "false",
            "dataloader_pin_memory": "false",
            "save_strategy": "no",
            "logging_steps": 1,
            "train_sampling_strategy": "group_by_length",
        } | changes
        if "datasets" not in settings and "task" not in settings:
            settings["datasets"] = rows_file()
        flags = [f"--{k}={v}" for k, v in settings.items() if v is not None]
        return run_recipe("classify", *flags, *more)

    return call


def test_learns_measures_calibrates_and_draws(classify, tmp_path: Path):
    metrics = classify(max_steps=40, learning_rate=5e-3)
    assert metrics["eval_accuracy"] > 0.9
    assert metrics["eval_accuracy_low"] <= metrics["eval_accuracy"] <= metrics["eval_accuracy_high"]
    assert {
        "eval_f1_macro",
        "eval_f1_micro",
        "eval_matthews",
        "eval_f1",
        "eval_baseline_accuracy",
    } <= metrics.keys()
    assert 0 <= metrics["eval_calibration_error"] <= 1
    assert metrics["eval_f1_of_good"] == metrics["eval_f1"]
    # all 24 rows are right, which says nothing of how sure to be
    assert "eval_calibration_error_calibrated" not in metrics
    record = read_run(tmp_path / "out")
    for name in ("eval_confusion", "eval_reliability"):
        assert (tmp_path / "out" / record.artifacts[name]).read_text().startswith("<svg")
    assert {"eval classes", "eval most confident mistakes"} <= record.tables.keys()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "good"}
    assert config["attention_probs_dropout_prob"] == 0
    info = read_classifier_info(tmp_path / "out")
    assert info is not None and info.names == ["bad", "good"] and info.temperature == 1
    lines = [
        json.loads(line)
        for line in (tmp_path / "out" / "eval_predictions.jsonl").read_text().splitlines()
    ]
    assert len(lines) == metrics["eval_rows"]
    assert numpy.mean([row["label"] == row["true"] for row in lines]) == pytest.approx(
        metrics["eval_accuracy"]
    )


def logits_again(folder: Path, rows: list[dict]) -> list[dict]:
    model, tokenizer, info = load_trained_classifier(ModelConfig(model_name_or_path=str(folder)))
    encoded = encode_texts(tokenizer, [row["text"] for row in rows], max_length=info.max_length)
    logits = classify_logits(model, encoded, pad_token_id=tokenizer.pad_token_id)
    return answers_of_row(logits, info)


@pytest.mark.parametrize("way", ["full", "frozen", "lora"])
def test_every_way_of_training_reloads_with_the_same_answers(
    classify, bert: Path, tmp_path: Path, way: str
):
    from safetensors.torch import load_file

    settings = {
        "frozen": {"freeze_encoder": "true"},
        "lora": {"use_peft": "true", "lora_r": 4},
    }.get(way, {})
    classify(max_steps=2, learning_rate=1e-3, **settings)
    out = tmp_path / "out"
    lines = [json.loads(line) for line in (out / "eval_predictions.jsonl").read_text().splitlines()]
    again = logits_again(out, lines)
    for line, answer in zip(lines, again, strict=True):
        assert answer["label"] == line["label"]
        assert answer["probability"] == pytest.approx(line["probability"], abs=2e-6)
    assert len({line["probability"] for line in lines}) > 5
    if way == "lora":
        held = load_file(out / "adapter_model.safetensors")
        assert any("classifier" in name for name in held), "the head is saved"
    if way == "frozen":
        before, after = load_file(bert / "model.safetensors"), load_file(out / "model.safetensors")
        name = "bert.encoder.layer.1.output.dense.weight"
        assert before[name].equal(after[name])


def test_several_labels_a_row(classify, rows_file, tmp_path: Path):
    def change(row: dict, number: int) -> dict:
        return row | {
            "label": [row["label"], *(["third"] if number % 3 == 0 else [])] if number % 5 else []
        }

    metrics = classify(datasets=rows_file(change), class_weights="true")
    assert {"eval_label_accuracy", "eval_f1_macro"} <= metrics.keys()
    info = read_classifier_info(tmp_path / "out")
    assert info is not None and info.problem_type == "multi_label_classification"
    assert info.names == ["bad", "good", "third"]
    line = json.loads((tmp_path / "out" / "eval_predictions.jsonl").read_text().splitlines()[0])
    assert set(line["labels"]) == {
        name for name, chance in line["probabilities"].items() if chance > 0.5
    }


def test_numbers_and_pairs(classify, rows_file, tmp_path: Path):
    def change(row: dict, number: int) -> dict:
        return {
            "text": row["text"],
            "other": "the owl",
            "label": float(row["label"] == "good") + number / 100,
        }

    metrics = classify(
        datasets=rows_file(change), text_pair_column="other", learning_rate=3e-3, max_steps=20
    )
    assert {"eval_pearson", "eval_spearman", "eval_mean_squared_error"} <= metrics.keys()
    assert metrics["eval_mean_squared_error"] < 2
    info = read_classifier_info(tmp_path / "out")
    assert info is not None and info.names == [] and info.text_pair_column == "other"


def test_a_causal_model_and_names_for_numbers(
    classify, rows_file, tiny_llama: Path, tmp_path: Path
):
    def change(row: dict, number: int) -> dict:
        return row | {"label": int(row["label"] == "good"), "label_name": row["label"]}

    classify(
        model_name_or_path=tiny_llama, datasets=rows_file(change), label_name_column="label_name"
    )
    info = read_classifier_info(tmp_path / "out")
    assert info is not None and info.names == ["bad", "good"]


def test_a_task_of_glue_from_local_files(classify, rows_file, tmp_path: Path):
    def change(row: dict, number: int) -> dict:
        return {"sentence": row["text"], "label": int(row["label"] == "good"), "idx": number}

    train, held = (
        rows_file(change),
        rows_file(lambda r, n: change(r, n) | {"sentence": f"{r['text']} end"}, "dev.jsonl"),
    )
    metrics = classify(
        task="cola",
        datasets=train,
        eval_datasets=held,
        load_best_model_at_end="true",
        eval_strategy="steps",
        save_strategy="steps",
        save_steps=1,
        eval_steps=1,
        early_stopping_patience=1,
    )
    assert metrics["eval_glue_score"] == metrics["eval_matthews"]
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    best = max(entry["eval_matthews"] for entry in state["log_history"] if "eval_matthews" in entry)
    assert state["best_metric"] == best
    assert read_classifier_info(tmp_path / "out").names == ["unacceptable", "acceptable"]


def test_labels_that_cannot_be_learnt(classify, rows_file, tmp_path: Path):
    held = rows_file(
        lambda row, n: {"text": f"{row['text']} x", "label": "ugly" if n == 3 else row["label"]},
        "dev.jsonl",
    )
    with pytest.raises(
        DataError, match=r"dev\.jsonl line 4: label is 'ugly', which is none of the 2 labels bad,"
    ):
        classify(eval_datasets=held, output_dir=tmp_path / "a")
    mixed = rows_file(lambda row, n: row | {"label": n if n == 5 else row["label"]}, "mixed.jsonl")
    with pytest.raises(DataError, match=r"mixed.jsonl.*6.*label"):
        classify(datasets=mixed, output_dir=tmp_path / "b")
    with pytest.raises(DataError, match=r"column 'label' has 1 class only \('good'\)"):
        classify(
            datasets=rows_file(lambda row, n: row | {"label": "good"}), output_dir=tmp_path / "c"
        )
    with pytest.raises(DataError, match=r"rows\.jsonl line 3: no label in column 'label'"):
        classify(
            datasets=rows_file(lambda row, n: row | {"label": None if n == 2 else row["label"]}),
            eval_datasets=rows_file(
                lambda row, n: row | {"text": f"dev {row['text']}"}, "dev.jsonl"
            ),
            output_dir=tmp_path / "d",
        )


def test_texts_that_cannot_be_read(
    classify, rows_file, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    held = rows_file(lambda row, n: row | {"text": f"dev {row['text']}"}, "dev.jsonl")
    empty = rows_file(lambda row, n: row | {"text": " " if n == 2 else row["text"]})
    with pytest.raises(DataError, match=r"rows\.jsonl line 3: the text is empty; remove"):
        classify(datasets=empty, eval_datasets=held, output_dir=tmp_path / "a")
    metrics = classify(
        max_steps=1,
        datasets=empty,
        eval_datasets=held,
        on_bad_row="skip",
        output_dir=tmp_path / "b",
    )
    assert metrics["train_rows"] == 59
    long = rows_file(lambda row, n: row | {"text": row["text"] + " fox" * (90 if n < 4 else 0)})
    with caplog.at_level("WARNING"):
        classify(max_steps=1, datasets=long, eval_datasets=held, output_dir=tmp_path / "c")
    assert any("4 of 60 texts are longer than 64 tokens" in message for message in caplog.messages)
    with pytest.raises(DataError, match=r"4 of 60 texts are longer than 64 tokens .* first row 1"):
        classify(datasets=long, eval_datasets=held, overlong="fail", output_dir=tmp_path / "d")
    dropped = classify(
        max_steps=1, datasets=long, eval_datasets=held, overlong="drop", output_dir=tmp_path / "e"
    )
    assert dropped["train_rows"] == 56
    with pytest.raises(
        ConfigError,
        match=r"--max_length 80 is longer than the model's context: use --max_length 64",
    ):
        classify(max_length=80, output_dir=tmp_path / "f")


def test_settings_that_do_not_fit(
    classify, rows_file, bert: Path, tiny_llama: Path, tmp_path: Path
):
    with pytest.raises(
        ConfigError, match=r"--metric_for_best_model pearson does not fit a single label"
    ):
        classify(metric_for_best_model="pearson", output_dir=tmp_path / "a")
    with pytest.raises(ConfigError, match=r"the tokenizer has 300 tokens but the embedding"):
        classify(tokenizer_name_or_path=tiny_llama, output_dir=tmp_path / "b")
    other = tmp_path / "other"
    from hfstack.tokens.train_tokenizer import train_tokenizer

    train_tokenizer(
        ["zebras do not read any of this"] * 9, kind="wordpiece", vocab_size=60
    ).save_pretrained(other)
    with pytest.raises(ConfigError, match=r"is not that of .* its ids would mean other words"):
        classify(tokenizer_name_or_path=other, output_dir=tmp_path / "c")
    with pytest.raises(ConfigError, match=r"--task 'sst3': choose one of sst2, cola"):
        classify(task="sst3", output_dir=tmp_path / "d")
    with pytest.raises(
        (ConfigError, MissingExtraError), match=r"--load_in_4bit: quantised|bitsandbytes is not"
    ):
        classify(load_in_4bit="true", output_dir=tmp_path / "g")
    with pytest.raises(ConfigError, match=r"holds text: a number to predict must be a number"):
        classify(kind="regression", output_dir=tmp_path / "e")
    classify(max_steps=1, output_dir=tmp_path / "two")
    three = rows_file(
        lambda row, n: row | {"label": ["good", "bad", "third"][n % 3]}, "three.jsonl"
    )
    with pytest.raises(
        ConfigError, match=r"is a classifier of 2 labels \(bad, good\), the data has 3"
    ):
        classify(model_name_or_path=tmp_path / "two", datasets=three, output_dir=tmp_path / "f")


def test_learns_from_a_larger_classifier(classify, rows_file, tmp_path: Path):
    learns = {"max_steps": 150, "learning_rate": 5e-3}
    classify(**learns, output_dir=tmp_path / "large")
    teacher = {"teacher_model": tmp_path / "large", "soft_label_weight": 1.0}
    found = classify(**learns, **teacher, output_dir=tmp_path / "small")
    # of the labels nothing was read, and still they are right
    assert found["eval_accuracy"] > 0.9
    assert "large" in str(read_run(tmp_path / "small").models)
    three = rows_file(
        lambda row, n: row | {"label": ["good", "bad", "third"][n % 3]}, "three.jsonl"
    )
    with pytest.raises(ConfigError, match="has the labels bad, good, and the rows bad, good, thi"):
        classify(**teacher, datasets=three, output_dir=tmp_path / "other")
    numbers = rows_file(lambda row, n: row | {"label": n / 7}, "numbers.jsonl")
    with pytest.raises(ConfigError, match="teaches one label of each row, and these rows are regr"):
        classify(**teacher, datasets=numbers, output_dir=tmp_path / "numbers")


def test_the_yaml_runs_with_a_model_and_data_of_one_s_own(
    run_recipe, rows_file, bert: Path, tmp_path: Path
):
    metrics = run_recipe(
        "classify",
        f"--config={ROOT / 'recipes' / 'classify.yaml'}",
        f"--model_name_or_path={bert}",
        f"--datasets={rows_file()}",
        "--task=none",
        f"--output_dir={tmp_path / 'out'}",
        "--max_steps=1",
        "--bf16=false",
        "--max_length=32",
        "--eval_strategy=steps",
        "--save_strategy=steps",
        "--save_steps=1",
        "--eval_steps=1",
        "--eval_fraction=0.3",
        "--dataloader_pin_memory=false",
    )
    assert metrics["eval_rows"] == 18
    assert json.loads((tmp_path / "out" / "trainer_state.json").read_text())[
        "best_model_checkpoint"
    ]


def test_a_tokenizer_keeps_no_truncation_that_would_be_saved(bert: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bert)
    assert len(encode_texts(tokenizer, ["the fox was kind"], max_length=3)[0]["input_ids"]) == 3
    tokenizer.save_pretrained(tmp_path)
    saved = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert saved.truncation is None and len(saved.encode("the fox was kind").ids) > 3

    # what it was given with stays
    tokenizer.backend_tokenizer.enable_truncation(5)
    encode_texts(tokenizer, ["the fox was kind"], max_length=3)
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 5
