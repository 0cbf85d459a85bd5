"""Rows that can be read and not used, in every loader: refused, or left out and written down."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hfstack.data.places import BadRows
from hfstack.data.sources import DataArgs, load_splits
from hfstack.errors import DataError
from hfstack.row_counts import RowCounts
from hfstack.tasks.question_answering.data import read_questions
from hfstack.tasks.retrieval.rows import RowsArgs, load_text_pairs
from hfstack.tasks.rl.prompts import load_prompts
from hfstack.tasks.seq2seq.data import load_sources_and_targets
from hfstack.tasks.token_classification.data import load_sentences

Load = Callable[[DataArgs, Path, RowCounts], Any]


def load_retrieval(args: DataArgs, quarantine: Path, counts: RowCounts) -> Any:
    pairs, _ = load_text_pairs(args, RowsArgs(), quarantine_file=quarantine, row_counts=counts)
    return pairs["train"]


def load_translations(args: DataArgs, quarantine: Path, counts: RowCounts) -> Any:
    columns = ("source", "target")
    return load_sources_and_targets(args, columns, quarantine_file=quarantine, row_counts=counts)[
        0
    ]["train"]


def load_tags(args: DataArgs, quarantine: Path, counts: RowCounts) -> Any:
    sentences, _, _ = load_sentences(
        args,
        tokens_column="tokens",
        tags_column="tags",
        tag_names=(),
        bad_tags="fail",
        quarantine_file=quarantine,
        row_counts=counts,
    )
    return sentences["train"]


def load_questions(args: DataArgs, quarantine: Path, counts: RowCounts) -> Any:
    columns = ("question", "context", "answers")
    rows = load_splits(args, columns, quarantine_file=quarantine, row_counts=counts)["train"]
    bad_rows = BadRows(args.on_bad_row, quarantine, counts)
    how: Any = {"sources": args.datasets, "bad_rows": bad_rows}
    return read_questions(rows, columns=columns, name="train", **how)


def load_rl(args: DataArgs, quarantine: Path, counts: RowCounts) -> Any:
    return load_prompts(
        args, recipe="ppo", as_chat=True, quarantine_file=quarantine, row_counts=counts
    )["train"]


LOADERS: dict[str, tuple[Load, dict[str, Any], dict[str, Any]]] = {
    "pairs": (load_retrieval, {"query": "a", "passage": "b"}, {"passage": " "}),
    "scores": (load_retrieval, {"query": "a", "passage": "b", "score": 1.0}, {"score": None}),
    "translations": (load_translations, {"source": "a", "target": "b"}, {"target": None}),
    "tags": (load_tags, {"tokens": ["a", "b"], "tags": ["O", "B-X"]}, {"tags": ["O"]}),
    "questions": (
        load_questions,
        {"question": "a", "context": "b", "answers": None},
        {"question": ""},
    ),
    "prompts": (load_rl, {"prompt": "a"}, {"prompt": ""}),
}


@pytest.mark.parametrize("name", LOADERS)
def test_bad_rows_are_refused_or_left_out(tmp_path: Path, name: str) -> None:
    load, good, change = LOADERS[name]
    path, quarantine = tmp_path / "rows.jsonl", tmp_path / "quarantine.jsonl"
    rows = [good | change, good, good, good | change, good]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def read(on_bad_row: Any) -> tuple[Any, RowCounts]:
        counts = RowCounts()
        args = DataArgs(datasets=[str(path)], eval_fraction=0.0, on_bad_row=on_bad_row)  # type: ignore[list-item]
        return load(args, quarantine, counts), counts

    with pytest.raises(DataError, match=r"^2 rows .*rows.jsonl line 1: .*--on_bad_row skip"):
        read("fail")

    found, counts = read("skip")
    assert len(found) == 3 and not quarantine.exists()
    assert counts.splits["train"].read == 5 and counts.splits["train"].used == 3
    assert sum(counts.splits["train"].left_out.values()) == 2

    read("quarantine")
    written = [json.loads(line) for line in quarantine.read_text().splitlines()]
    assert [line["row"] for line in written] == [1, 4]
    assert all(json.loads(line["text"]).items() >= change.items() for line in written)

    if name == "scores":  # a row alone without one is a row of pairs
        return
    path.write_text(json.dumps(good | change) + "\n")
    with pytest.raises(DataError, match="left of 1|no rows"):
        read("skip")
