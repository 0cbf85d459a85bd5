"""Tasks of GLUE by name, from the Hub and from files, and which rows may not be on both sides."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from hfstack.data.sources import DataArgs, Source
from hfstack.data.splitting import Splits
from hfstack.errors import ConfigError, DataError
from hfstack.tasks.classification import data as classify_data
from hfstack.tasks.classification.data import LabelArgs, encode_split, load_labelled
from tests.tiny_encoder import tiny_bert_tokenizer


def glue_rows(task: str) -> Dataset:
    columns = classify_data.glue_task(task).columns
    names = classify_data.glue_task(task).labels
    label: Any = ClassLabel(names=list(names)) if names else Value("float32")
    features = Features(
        {name: Value("string") for name in columns if name}
        | {"label": label, "idx": Value("int32")}
    )
    rows = {name: ["the fox", "a ball", "the owl", "once"] for name in columns if name}
    return Dataset.from_dict(
        {**rows, "label": [0, 1, 0, 1], "idx": [0, 1, 2, 3]}, features=features
    )


@pytest.mark.parametrize("task", ["sst2", "cola", "mrpc", "rte", "stsb", "qqp", "mnli", "qnli"])
def test_a_task_by_its_name_comes_from_the_hub(task: str, monkeypatch: pytest.MonkeyPatch):
    asked: list[Source] = []

    def load(args: DataArgs, **_: object) -> Splits:
        asked.extend([*args.datasets, *args.eval_datasets])
        return Splits(
            {"train": glue_rows(task), "eval": glue_rows(task)}, {"train": [], "eval": []}
        )

    def load_more(sources: list[Source], **_: object) -> Dataset:
        asked.extend(sources)
        return glue_rows(task)

    monkeypatch.setattr(classify_data, "load_splits", load)
    monkeypatch.setattr(classify_data, "load_mixture", load_more)
    labelled = load_labelled(DataArgs(), LabelArgs(task=task))
    splits = ["train", *classify_data.glue_task(task).eval_splits]
    assert [(one.path, one.name, one.split) for one in asked] == [
        ("nyu-mll/glue", task, split) for split in splits
    ]
    assert labelled.labels.names == classify_data.glue_task(task).labels
    assert labelled.labels.kind == ("regression" if task == "stsb" else "single_label")
    assert ("eval_mismatched" in labelled.splits) == (task == "mnli")
    encoded = encode_split(
        labelled,
        "eval",
        tiny_bert_tokenizer(),
        max_length=16,
        overlong="truncate",
        skip_empty=False,
    )
    assert encoded.rows["labels"][:] == [0, 1, 0, 1]
    pair = classify_data.glue_task(task).columns[1] is not None
    assert encoded.texts[0] == ("the fox ‖ the fox" if pair else "the fox")
    assert max(encoded.rows["token_type_ids"][0]) == int(pair)


def write(path: Path, rows: list[dict]) -> Source:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(str(path))


def test_files_may_have_the_task_s_columns_or_one_s_own(tmp_path: Path):
    own = [{"text": f"a {i}", "text_pair": f"b {i}", "label": i % 2} for i in range(9)]
    found = load_labelled(
        DataArgs([write(tmp_path / "own.jsonl", own)], eval_fraction=0.3), LabelArgs(task="rte")
    )
    assert found.columns == ("text", "text_pair") and found.labels.names == (
        "entailment",
        "not_entailment",
    )
    theirs = [{"sentence1": f"a {i}", "sentence2": f"b {i}", "label": i % 2} for i in range(9)]
    found = load_labelled(
        DataArgs([write(tmp_path / "theirs.jsonl", theirs)], eval_fraction=0.3),
        LabelArgs(task="rte"),
    )
    assert found.columns == ("sentence1", "sentence2")


def test_pairs_that_share_a_text_are_different_rows(tmp_path: Path):
    train = write(
        tmp_path / "train.jsonl",
        [{"text": "same", "text_pair": f"t{i}", "label": i % 2} for i in range(6)],
    )
    held = write(
        tmp_path / "dev.jsonl",
        [{"text": "same", "text_pair": f"d{i}", "label": i % 2} for i in range(4)],
    )
    found = load_labelled(DataArgs([train], [held]), LabelArgs(text_pair_column="text_pair"))
    assert len(found.splits["train"]) == 6
    with pytest.raises(DataError, match="all 6 rows of datasets are also in eval_datasets"):
        load_labelled(DataArgs([train], [held]), LabelArgs())


def test_mistakes(tmp_path: Path):
    rows = write(
        tmp_path / "rows.jsonl", [{"text": f"a {i}", "label": "xy"[i % 2]} for i in range(6)]
    )
    with pytest.raises(
        DataError,
        match=r"no column 'labels', found text, label; did you mean 'label'\? set ",
    ):
        load_labelled(DataArgs([rows], eval_fraction=0), LabelArgs(label_column="labels"))
    with pytest.raises(
        DataError, match=r"found text, label; GLUE's have question, sentence; set --text_column"
    ):
        load_labelled(DataArgs([rows], eval_fraction=0), LabelArgs(task="qnli"))
    with pytest.raises(ConfigError, match="all rows are read before the first step"):
        load_labelled(DataArgs([rows], eval_fraction=0, streaming=True), LabelArgs())
    assert LabelArgs(task="none").task is None
    with pytest.raises(
        ConfigError, match="kind must be auto, single_label, multi_label, regression, got 'many'"
    ):
        LabelArgs(kind="many")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="overlong must be truncate, drop or fail, got 'crop'"):
        LabelArgs(overlong="crop")  # pyright: ignore[reportArgumentType]
    assert LabelArgs(overlong="cut").overlong == "truncate"  # the name before 0.2


@pytest.mark.shared
def test_real_sets_as_they_are(shared_data: Path):
    def load(name: str, **settings: Any) -> classify_data.LabelledRows:
        data = DataArgs([Source(str(shared_data / "cls" / f"{name}.jsonl.gz"))], eval_fraction=0.1)
        return load_labelled(data, LabelArgs(**settings))

    pairs = load("rte", task="rte")
    assert pairs.columns == ("text", "text_pair") and pairs.labels.names == (
        "entailment",
        "not_entailment",
    )
    questions = load("trec6", label_name_column="label_name")
    assert set(questions.labels.names) == {"ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"}
    chinese = load("chnsenticorp_hotel", label_name_column="label_name")
    tokenizer = tiny_bert_tokenizer()
    encoded = encode_split(
        chinese, "eval", tokenizer, max_length=64, overlong="truncate", skip_empty=False
    )
    assert max(encoded.rows["length"]) == 64 and set(encoded.targets) == {0, 1}


@pytest.mark.parametrize(
    ("old", "new"),
    [("single", "single_label"), ("several", "multi_label"), ("number", "regression")],
)
def test_the_old_names_of_kinds_are_read(old: Any, new: str) -> None:
    assert LabelArgs(kind=old).kind == new


def write_reviews(folder: Path, rows: list[tuple[str, Any]]) -> Path:
    path = folder / "reviews.csv"
    lines = [f"{number},{text},{label}" for number, (text, label) in enumerate(rows)]
    path.write_text("id,text,label\n" + "\n".join(lines) + "\n")
    return path


def test_bad_labels_are_named_by_file_and_line_after_the_split(tmp_path: Path):
    rows: list[tuple[str, Any]] = [
        (f"text {number}", "good bad".split()[number % 2]) for number in range(80)
    ]
    for number in (3, 20, 41, 60, 61, 77, 79):
        rows[number] = (f"text {number}", "")
    args = DataArgs(datasets=[Source(str(write_reviews(tmp_path, rows)))], eval_fraction=0.4)
    with pytest.raises(DataError) as error:
        load_labelled(args, LabelArgs())
    message = str(error.value)
    assert message.startswith("7 rows cannot be used, first: ")
    assert message.endswith("; ...; remove such rows or label them")
    named = {int(line) for line in re.findall(r"reviews\.csv line (\d+): no label in", message)}
    assert len(named) == 5 and named < {5, 22, 43, 62, 63, 79, 81}

    # a held-out label that the train rows do not have, and a text that is empty
    dev = tmp_path / "dev.jsonl"
    held = [{"text": f"dev {n}", "label": "ugly" if n == 4 else "good"} for n in range(6)]
    dev.write_text("".join(json.dumps(row) + "\n" for row in held))
    rows = [(text, label or "good") for text, label in rows]
    rows[9] = (" ", "bad")
    args = DataArgs(
        datasets=[Source(str(write_reviews(tmp_path, rows)))], eval_datasets=[Source(str(dev))]
    )
    labelled = load_labelled(args, LabelArgs())
    encode: Any = {"tokenizer": tiny_bert_tokenizer(), "max_length": 32, "overlong": "truncate"}
    with pytest.raises(DataError, match=r"^\S*dev\.jsonl line 5: label is 'ugly', which is none"):
        encode_split(labelled, "eval", **encode, skip_empty=False)
    with pytest.raises(DataError, match=r"^\S*reviews\.csv line 11: the text is empty; remove"):
        encode_split(labelled, "train", **encode, skip_empty=False)
    assert len(encode_split(labelled, "train", **encode, skip_empty=True).rows) == 79


def test_documents_of_no_class_are_no_class(tmp_path: Path):
    for place in ("train/pos", "train/neg", "train/unsup", "test/pos", "test/neg"):
        for number in range(12):
            path = tmp_path / "aclImdb" / place / f"{number}_7.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{place} {number}")
    folder = str(tmp_path / "aclImdb")
    args = DataArgs(datasets=[Source(folder)], eval_datasets=[Source(folder, split="test")])
    labelled = load_labelled(args, LabelArgs())
    assert labelled.labels.names == ("neg", "pos")
    for split in ("train", "test"):
        rows = labelled.splits["eval" if split == "test" else split]
        assert sorted(set(rows["label"])) == ["neg", "pos"] and len(rows) == 24
        assert {text.partition("/")[0] for text in rows["text"]} == {split}
