"""The predict recipe: answers in the order of the rows, going on after an interruption, and what it
refuses.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import ModelConfig

from hfstack.errors import CheckpointError, ConfigError, DataError, Preempted
from hfstack.runs.record import read_run
from hfstack.tasks.classification.model import ClassifierInfo
from hfstack.tasks.classification.predict import load_classify_predictor
from hfstack.tasks.shared.predict import by_length, write_predictions
from tests.conftest import SENTENCES
from tests.tiny_encoder import save_tiny_bert


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an untrained classifier of three labels, whose temperature is 2."""
    folder = save_tiny_bert(tmp_path_factory.mktemp("classifier"))
    names = {0: "low", 1: "mid", 2: "high"}
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, id2label=names)
    model.classifier.weight.data.normal_()
    model.save_pretrained(folder)
    ClassifierInfo(
        "single_label_classification", list(names.values()), max_length=64, temperature=2.0
    ).save(folder)
    return folder


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    rows = [{"id": i, "text": f"{SENTENCES[i % 4]} {'a' * (i % 5)}"[i % 9 :]} for i in range(70)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_order_probabilities_and_temperature(
    run_recipe, classifier: Path, rows_file: Path, tmp_path: Path
):
    metrics = run_recipe(
        "predict",
        f"--model_name_or_path={classifier}",
        f"--datasets={rows_file}",
        "--keep_columns",
        "id",
        "text",
        f"--output_dir={tmp_path / 'out'}",
        "--batch_size=1",
    )
    found = lines(tmp_path / "out" / "predictions.jsonl")
    assert metrics == {"rows": 70}
    assert [row["id"] for row in found] == list(range(70))
    model = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    for row in found[::9]:
        logits = model(**tokenizer(row["text"], return_tensors="pt")).logits[0].detach()
        expected = (logits / 2.0).softmax(0)
        assert list(row["probabilities"].values()) == pytest.approx(expected.tolist(), abs=2e-6)
        assert row["label"] == ["low", "mid", "high"][int(logits.argmax())]
        assert row["probability"] == max(row["probabilities"].values())


def test_batches_do_not_change_the_answers(classifier: Path, rows_file: Path):
    rows = lines(rows_file)
    args = ModelConfig(model_name_or_path=str(classifier))
    found = [
        load_classify_predictor(args, columns=(None, None), batch_size=size, max_length=None)(rows)
        for size in (1, 16)
    ]
    for one, many in zip(*found, strict=True):
        assert one["label"] == many["label"]
        assert one["probability"] == pytest.approx(many["probability"], abs=3e-6)


def counting(seen: list[int], stop_at: int | None = None):
    """A predictor that notes what it is asked, and breaks down at one row."""

    def predict(rows: list[dict], first_row: int) -> list[dict]:
        assert first_row == rows[0]["id"] + 1, "also after an interruption"
        if any(row["id"] == stop_at for row in rows):
            raise KeyboardInterrupt
        seen.extend(row["id"] for row in rows)
        return [{"twice": 2 * row["id"]} for row in rows]

    return predict


def numbered(count: int) -> Iterator[dict]:
    return ({"id": number} for number in range(count))


def test_an_interrupted_prediction_goes_on(tmp_path: Path):
    path, seen = tmp_path / "predictions.jsonl", []
    settings = {"identity": "this model", "keep": ["id"], "window_rows": 10}
    with pytest.raises(KeyboardInterrupt):
        write_predictions(numbered(45), counting(seen, stop_at=27), path, **settings)
    assert not path.exists() and seen == list(range(20))
    begun = next(tmp_path.glob(".predictions.jsonl.*"))
    begun.write_text(begun.read_text() + '{"id": 20, "tw')  # a line that was not written to its end
    assert write_predictions(numbered(45), counting(seen), path, **settings) == 45
    assert seen == list(range(45)), "no row is predicted twice"
    assert lines(path) == [{"id": number, "twice": 2 * number} for number in range(45)]
    assert not list(tmp_path.glob(".predictions*"))


def test_another_model_or_file_starts_anew(tmp_path: Path):
    path, seen = tmp_path / "predictions.jsonl", []
    with pytest.raises(KeyboardInterrupt):
        write_predictions(
            numbered(9), counting(seen, stop_at=5), path, identity="first", window_rows=3
        )
    write_predictions(numbered(9), counting(seen), path, identity="second", window_rows=3)
    assert seen == [0, 1, 2, *range(9)]
    assert len(lines(path)) == 9


def test_rows_are_not_all_held_at_once(tmp_path: Path):
    drawn = written = 0
    most = 0

    def rows() -> Iterator[dict]:
        nonlocal drawn
        for number in range(500):
            drawn += 1
            yield {"id": number}

    def predict(window: list[dict], first_row: int) -> list[dict]:
        nonlocal written, most
        assert first_row == written + 1
        most = max(most, drawn - written)
        written += len(window)
        return [{} for _ in window]

    write_predictions(rows(), predict, tmp_path / "out.jsonl", identity="x", window_rows=16)
    assert most == 16


def test_by_length_keeps_the_order():
    texts = ["aaa", "b", "cc", "dddd", "e"]
    batches = []

    def score(batch: list[str]) -> list[str]:
        batches.append([len(text) for text in batch])
        return [text.upper() for text in batch]

    assert by_length(texts, list(map(len, texts)), score, 2) == ["AAA", "B", "CC", "DDDD", "E"]
    assert batches == [[4, 3], [2, 1], [1]]


def test_a_row_without_a_text_keeps_its_line(run_recipe, classifier: Path, tmp_path: Path):
    rows = tmp_path / "rows.jsonl"
    texts = ['"the fox"', '" "', "null", "5", '"cut', '"the owl"']
    rows.write_text("".join(f'{{"id": {i}, "text": {text}}}\n' for i, text in enumerate(texts)))
    flags = [f"--model_name_or_path={classifier}", f"--datasets={rows}", "--keep_columns=id"]
    with pytest.raises(DataError, match=r"rows\.jsonl line 5: column \d+: .*--on_bad_row skip"):
        run_recipe("predict", *flags, f"--output_dir={tmp_path / 'fail'}")

    out = tmp_path / "out"
    metrics = run_recipe(
        "predict", *flags, "--on_bad_row=skip", "--batch_size=1", f"--output_dir={out}"
    )
    assert metrics == {"rows": 6, "rows_without_prediction": 4}
    found = lines(out / "predictions.jsonl")
    assert [(line["id"], line.get("problem", "")[:14]) for line in found] == [
        (0, ""),
        (1, "text is empty"),
        (2, "text is null"),
        (3, "text is '5', n"),
        (None, "column 24: Inv"),
        (5, ""),
    ]
    assert found[1] == {"id": 1, "label": None, "probability": None, "probabilities": None} | {
        "problem": "text is empty"
    }
    assert found[0]["label"] in ("low", "mid", "high")


@pytest.mark.parametrize(("name", "chosen"), [("rows.csv", "auto"), ("rows.jsonl", "csv")])
def test_a_table_is_answered_by_a_table(
    run_recipe,
    classifier: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    name: str,
    chosen: str,
):
    rows = [{"id": "a,1", "text": "the fox"}, {"id": 'b"2', "text": ""}, {"id": "c", "text": "owl"}]
    path, out = tmp_path / name, tmp_path / "out"
    if name == "rows.csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["id", "text"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    flags = [f"--model_name_or_path={classifier}", f"--datasets={path}", f"--format={chosen}"]
    run_recipe("predict", *flags, "--keep_columns=id", f"--output_dir={out}")
    with (out / "predictions.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["id"] for row in found] == ["a,1", 'b"2', "c"]
    assert [row["problem"] for row in found] == ["", "text is empty", ""]
    chances = [float(found[0][f"probabilities.{label}"]) for label in ("low", "mid", "high")]
    assert sum(chances) == pytest.approx(1, abs=1e-5)
    assert float(found[0]["probability"]) == max(chances) and found[1]["label"] == ""
    assert len((out / "predictions.jsonl").read_text().splitlines()) == len(found)
    assert read_run(out).artifacts["predictions"] == "predictions.csv"
    counts = Counter(row["label"] for row in found if row["label"])
    printed = capsys.readouterr().out
    assert "3 rows: " in printed and "1 rows without a prediction: text is empty" in printed
    assert all(f", {number} {label}" in printed for label, number in counts.items())


def test_mistakes(run_recipe, classifier: Path, tiny_llama: Path, rows_file: Path, tmp_path: Path):
    def predict(name: str, **changes: object) -> None:
        settings = {
            "model_name_or_path": classifier,
            "datasets": rows_file,
            "output_dir": tmp_path / name,
        } | changes
        run_recipe("predict", *(f"--{key}={value}" for key, value in settings.items()))

    with pytest.raises(
        CheckpointError, match=r"LlamaForCausalLM, from .*\), but predict needs one of: sequence cl"
    ):
        predict("a", model_name_or_path=tiny_llama)
    with pytest.raises(DataError, match=r"row 1 has no column 'sentence', found id, text"):
        predict("b", text_column="sentence")
    with pytest.raises(ConfigError, match=r"--max_length 99 is longer than the model's context"):
        predict("c", max_length=99)
    with pytest.raises(DataError, match=r"--keep_columns label: row 1 has id, text"):
        predict("d", keep_columns="label")
    blank = tmp_path / "blank.jsonl"
    blank.write_text('{"text": null}\n{"text": "  "}\n')
    with pytest.raises(DataError, match=r"none of the 2 rows has an answer; .*: text is null"):
        predict("e", datasets=blank)
    assert not list((tmp_path / "e").glob("*predictions*"))
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "adapter_config.json").write_text(
        json.dumps(
            {
                "peft_type": "LORA",
                "task_type": "SEQ_CLS",
                "base_model_name_or_path": str(classifier),
            }
        )
    )
    AutoTokenizer.from_pretrained(classifier).save_pretrained(tmp_path / "half")
    with pytest.raises(CheckpointError, match=r"is an adapter without classifier.json"):
        predict("f", model_name_or_path=tmp_path / "half")


def test_the_recipe_goes_on_after_it_was_stopped(
    run_recipe, classifier: Path, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from hfstack.tasks.classification import predict as classify_rows

    load, windows, stops = classify_rows.load_classify_predictor, [], [True]

    def load_stopping(args: ModelConfig, **settings: object):
        predict = load(args, **settings)  # pyright: ignore[reportArgumentType]

        def answer(rows: list[dict], first_row: int) -> list[dict]:
            if windows and stops:
                stops.clear()
                raise KeyboardInterrupt
            windows.append(len(rows))
            return predict(rows, first_row)

        return answer

    monkeypatch.setattr(classify_rows, "load_classify_predictor", load_stopping)
    flags = [
        f"--model_name_or_path={classifier}",
        f"--datasets={rows_file}",
        f"--output_dir={tmp_path}/out",
    ]
    with pytest.raises(Preempted):
        run_recipe("predict", *flags, "--batch_size=1")
    assert not (tmp_path / "out" / "predictions.jsonl").exists()
    assert run_recipe("predict", *flags, "--batch_size=1") == {"rows": 70}
    assert windows == [32, 32, 6]
    assert len(lines(tmp_path / "out" / "predictions.jsonl")) == 70
