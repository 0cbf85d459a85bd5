"""Tagging end to end on a tiny encoder: it learns, predicts what it measured, and names what is
wrong with rows.
"""

import json
import random
from pathlib import Path

import pytest

from hfstack.errors import CheckpointError, ConfigError, DataError
from hfstack.runs.record import read_run
from tests.tiny_encoder import save_tiny_bert

ANIMALS, THINGS = ["fox", "owl", "rabbit"], ["ball", "river", "forest"]


def make_rows(count: int, seed: int = 0) -> list[dict]:
    """Sentences in which animals are entities of two words, and things of one."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        animal, thing = draw.choice(ANIMALS), draw.choice(THINGS)
        words = [
            "the",
            "small",
            animal,
            "saw",
            "the",
            thing,
            "near",
            str(number),
            *["home"] * (number % 7),
        ]
        tags = ["O", "B-animal", "I-animal", "O", "O", "B-thing", *["O"] * (2 + number % 7)]
        rows.append({"tokens": words, "ner_tags": tags})
    return rows


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    save_tiny_bert(folder / "bert")
    write(folder / "train.jsonl", make_rows(120))
    return folder


@pytest.fixture
def tag(run_recipe, inputs: Path, tmp_path: Path):
    """Call the recipe with small settings; keyword arguments override them."""

    def call(**changes: object) -> dict[str, float]:
        settings = {
            "model_name_or_path": inputs / "bert",
            "datasets": inputs / "train.jsonl",
            "eval_fraction": 0.3,
            "output_dir": tmp_path / "out",
            "max_steps": 2,
            "per_device_train_batch_size": 16,
            "learning_rate": 5e-3,
            "report_to": "none",
            "bf16": "false",
            "dataloader_pin_memory": "false",
            "save_strategy": "no",
        } | changes
        return run_recipe("tag", *(f"--{k}={v}" for k, v in settings.items() if v is not None))

    return call


def test_learns_measures_and_predicts_the_same(
    tag, run_recipe, inputs: Path, tmp_path: Path
) -> None:
    metrics = tag(max_steps=40, train_sampling_strategy="group_by_length")
    assert metrics["eval_entity_f1"] == 1.0 == metrics["eval_tag_accuracy"]
    assert metrics["baseline_entity_f1"] == pytest.approx(1.0)
    assert 0.85 < metrics["eval_entity_f1_low"] < 1.0
    record = read_run(tmp_path / "out")
    assert [row[0] for row in record.tables["scores by type"]["rows"]] == ["animal", "thing"]
    rows = [
        json.loads(line)
        for line in (tmp_path / "out" / record.artifacts["predictions"]).read_text().splitlines()
    ]
    assert len(rows) == 36 and all(row["tags"] == row["predicted"] for row in rows)

    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["id2label"] == {"0": "O", "1": "B-animal", "2": "I-animal", "3": "B-thing"}


def test_predicts_lists_and_texts_in_order_with_entities(tag, tmp_path: Path) -> None:
    from trl import ModelConfig

    from hfstack.tasks.token_classification.metrics import load_tag_predictor

    tag(max_steps=40)
    load = {"columns": (None, None), "batch_size": 2, "max_length": None}
    predict = load_tag_predictor(ModelConfig(str(tmp_path / "out")), **load)
    rows = [{"tokens": row["tokens"]} for row in make_rows(5, seed=9)] + [
        {"tokens": "the small owl saw the ball ."}
    ]
    found = predict(rows)
    assert [answer["words"] for answer in found[:5]] == [row["tokens"] for row in rows[:5]]
    assert [answer["tags"] for answer in found[:5]] == [
        row["ner_tags"] for row in make_rows(5, seed=9)
    ]
    assert [
        (e["type"], e["text"], e["first_word"], e["last_word"]) for e in found[5]["entities"]
    ] == [
        ("animal", "small owl", 1, 2),
        ("thing", "ball", 5, 5),
    ]
    assert 0.5 < found[5]["entities"][0]["probability"] <= 1
    with pytest.raises(
        DataError, match=r"row 1 has no column 'tokens', found text; set --text_column"
    ):
        predict([{"text": "a fox"}])
    answers = predict([{"tokens": []}, {"tokens": ["fox"]}, {"tokens": ["a", 1]}, {"tokens": None}])
    assert [answer.get("problem") for answer in answers] == [
        "tokens is empty",
        None,
        "tokens is \"['a', 1]\", not a list of words",
        "tokens is null",
    ]
    with pytest.raises(ConfigError, match="--max_length 65 is longer than the model's context"):
        load_tag_predictor(ModelConfig(str(tmp_path / "out")), **load | {"max_length": 65})


def test_an_adapter_is_saved_with_its_head_and_predicts_what_it_measured(
    tag, inputs: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file
    from trl import ModelConfig

    from hfstack.tasks.token_classification.metrics import load_tag_predictor

    metrics = tag(max_steps=30, use_peft="true", lora_r=4, learning_rate=2e-2)
    out, load = tmp_path / "out", {"columns": (None, None), "batch_size": 4, "max_length": None}
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    tags = {tag for line in lines for tag in line["predicted"]}
    assert metrics["eval_tag_accuracy"] > 0.8 and len(tags) > 2, (
        "it has learned: an untrained head would show"
    )
    found = load_tag_predictor(ModelConfig(str(out)), **load)(
        [{"tokens": line["words"]} for line in lines]
    )
    assert [answer["tags"] for answer in found] == [line["predicted"] for line in lines]
    assert not (out / "model.safetensors").exists()

    held = load_file(file := out / "adapter_model.safetensors")
    assert {"base_model.model.classifier.weight", "base_model.model.classifier.bias"} < set(held)
    save_file({name: value for name, value in held.items() if "classifier" not in name}, file)
    with pytest.raises(
        CheckpointError, match="was saved without classifier, which its base does not hold either"
    ):
        load_tag_predictor(ModelConfig(str(out)), **load)
    (out / "task.json").unlink()
    with pytest.raises(CheckpointError, match=r"is an adapter without task\.json: train it again"):
        load_tag_predictor(ModelConfig(str(out)), **load)
    with pytest.raises(ConfigError, match="which cannot be trained further here: name the model"):
        tag(model_name_or_path=out, output_dir=tmp_path / "on")


@pytest.mark.parametrize("pieces", ["first", "all"])
def test_numbers_with_names_and_long_sentences(tag, tmp_path: Path, pieces: str) -> None:
    names = ["O", "B-animal", "I-animal", "B-thing"]
    rows = [
        {"tokens": r["tokens"] * 3, "tags": [names.index(t) for t in r["ner_tags"]] * 3}
        for r in make_rows(40)
    ]
    config = tmp_path / "tags.yaml"
    config.write_text("tag_names: [O, B-animal, I-animal, B-thing]\n")
    metrics = tag(
        datasets=write(tmp_path / "numbers.jsonl", rows),
        max_length=16,
        label_pieces=pieces,
        config=config,
    )
    assert metrics["train_sentences"] == 28 and metrics["eval_tag_accuracy"] > 0
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    for row in map(json.loads, lines):
        assert len(row["predicted"]) == len(row["words"]) >= 24, "a cut sentence is whole again"


def test_tags_that_are_no_entities_are_scored_by_accuracy(tag, tmp_path: Path) -> None:
    rows = [
        {"tokens": ["the", "fox", str(i)], "pos_tags": ["DET", "NOUN", "NUM"]} for i in range(30)
    ]
    metrics = tag(datasets=write(tmp_path / "pos.jsonl", rows))
    assert {"eval_tag_accuracy", "eval_tag_f1_macro", "baseline_tag_accuracy"} <= set(metrics)
    table = read_run(tmp_path / "out").tables["scores by type"]["rows"]
    assert [row[0] for row in table] == ["DET", "NOUN", "NUM"] and "eval_entity_f1" not in metrics


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"tokens": ["a", "b"], "ner_tags": ["O"]},
            r"bad.jsonl line 3: 2 words but 1 tags; each word needs one",
        ),
        ({"tokens": ["", " "], "ner_tags": ["O", "O"]}, r"bad.jsonl line 3: the text is empty"),
        (
            {"tokens": ["a", "b"], "ner_tags": ["O", "I-thing"]},
            r"bad.jsonl line 3: I-thing after O at word 2; 1 entities begin with I- .* keep leaves",
        ),
        ({"tokens": ["a"], "ner_tags": ["B-animal"]}, None),
    ],
)
def test_bad_rows_are_named(tag, tmp_path: Path, row: dict, message: str | None) -> None:
    rows = [*make_rows(2), row]
    path = write(tmp_path / "bad.jsonl", rows)
    if message is None:
        tag(datasets=path, eval_fraction=0)
        return
    with pytest.raises(DataError, match=message):
        tag(datasets=path, eval_fraction=0)


def test_bad_input_is_one_line(tag, inputs: Path, tiny_llama: Path, tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.jsonl", [{"tokens": ["a", "b"], "tags": ["O", "O"]}] * 4)
    outside = write(tmp_path / "outside.jsonl", [{"tokens": ["a"], "ner_tags": ["B-planet"]}])
    numbers = write(tmp_path / "numbers.jsonl", [{"tokens": ["a", "b"], "tags": [0, 1]}])
    text = write(tmp_path / "text.jsonl", [{"text": "a b", "label": 1}])
    for changes, error, message in [
        ({"datasets": plain}, DataError, "all words have the tag 'O': there is nothing to learn"),
        (
            {"eval_datasets": outside},
            DataError,
            r"outside.jsonl line 1: the tag 'B-planet' is none of the train rows'; they have O, B-",
        ),
        (
            {"datasets": numbers},
            DataError,
            "tags are numbers without names; name them in order with --tag_names",
        ),
        (
            {"datasets": numbers, "tag_names": "O"},
            DataError,
            "numbers.jsonl line 1: tag 1 is outside of the 1 names O",
        ),
        ({"datasets": text}, DataError, "found text, label; set --tokens_column and --tags_column"),
        ({"tokenizer": 1}, ConfigError, "--tokenizer"),
        (
            {"max_length": 65},
            ConfigError,
            "--max_length 65 is longer than the model's context: use --max_length 64",
        ),
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
        ({"model_name_or_path": tmp_path / "none"}, CheckpointError, "no tokenizer at"),
        ({"bad_tags": "drop"}, ConfigError, "bad_tags"),
        (
            {"metric_for_best_model": "bleu"},
            ConfigError,
            "bleu does not fit this task: choose entity_f1, .* or loss",
        ),
    ]:
        changes = {"eval_fraction": 0} | changes
        with pytest.raises(error, match=message) as caught:
            tag(**changes, output_dir=tmp_path / str(len(list(tmp_path.iterdir()))))
        assert "\n" not in str(caught.value)
    tag()
    with pytest.raises(ConfigError, match=r"is a tagger of 4 tags \(O, B-animal, .*the data has 2"):
        other = write(tmp_path / "other.jsonl", [{"tokens": ["a", "b"], "tags": ["O", "B-x"]}])
        tag(
            model_name_or_path=tmp_path / "out",
            datasets=other,
            eval_fraction=0,
            output_dir=tmp_path / "z",
        )


def test_repair_and_keep(tag, tmp_path: Path, caplog) -> None:
    rows = make_rows(12)
    for row in rows:
        row["ner_tags"][6:8] = ["I-animal", "I-animal"]
    path = write(tmp_path / "io.jsonl", rows)
    for way, expected in (("repair", "B-animal"), ("keep", "I-animal")):
        tag(datasets=path, bad_tags=way, output_dir=tmp_path / way)
        lines = (tmp_path / way / "predictions.jsonl").read_text().splitlines()
        assert all(json.loads(line)["tags"][6] == expected for line in lines)
