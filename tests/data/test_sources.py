"""Sources, splits, streams and the messages that a wrong one gives."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset, IterableDataset

from hfstack.config import parse
from hfstack.data.columns import column_names, require_columns
from hfstack.data.reading import files, folders
from hfstack.data.sources import (
    DataArgs,
    Source,
    SourceLog,
    describe_sources,
    iterate_rows,
    load_mixture,
    load_splits,
)
from hfstack.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with its own cache."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def texts(name: str, count: int, prefix: str = "t") -> str:
    rows = [{"id": number, "text": f"{prefix}{number}"} for number in range(count)]
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def hub(monkeypatch: pytest.MonkeyPatch, outcome: Any) -> list[tuple[Any, ...]]:
    """Let the Hub answer with rows, or with an error; return the calls that it gets."""
    calls: list[tuple[Any, ...]] = []

    def load_dataset(
        path: str, name: str | None, *, split: str, streaming: bool
    ) -> Dataset | IterableDataset:
        calls.append((path, name, split, streaming))
        if isinstance(outcome, Exception):
            raise outcome
        rows = Dataset.from_list(outcome)
        return rows.to_iterable_dataset() if streaming else rows

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_strings_and_mappings_make_sources(folder: Path) -> None:
    texts("a.jsonl", 1)
    (folder / "c.yaml").write_text(
        "datasets: [a.jsonl, {path: user/set, name: en, split: test, weight: 2}]\n"
    )
    (from_yaml,) = parse(DataArgs, argv=["--config", "c.yaml"])
    assert from_yaml.datasets == [Source("a.jsonl"), Source("user/set", "en", "test", 2)]
    (from_flags,) = parse(
        DataArgs, argv=["--datasets", "a.jsonl", "d/*.csv", "user/set", "--max_rows", "5"]
    )
    assert from_flags.datasets == [Source("a.jsonl"), Source("d/*.csv"), Source("user/set")]
    assert [source.is_local for source in from_flags.datasets] == [True, True, False]
    assert DataArgs(datasets=["a.jsonl"]).datasets == [Source("a.jsonl")]  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Source(""), "path must be a Hub id, a file, a glob or a folder, got ''"),
        (
            lambda: Source("user/set", weight=0),
            "dataset user/set: weight must be a number above 0, got 0",
        ),
        (
            lambda: Source("user/set", weight=float("nan")),
            "weight must be a number above 0, got nan",
        ),
        (lambda: Source("a.jsonl", name="en"), "name 'en' is for Hub datasets"),
        (lambda: Source("a.jsonl", split="test"), "split 'test' needs a Hub id or a folder"),
        (
            lambda: Source("my stories"),
            "my stories: no such file, and not a Hub id such as user/dataset",
        ),
        (lambda: Source("a/b/c"), "a/b/c: no such file, and not a Hub id"),
        (lambda: DataArgs(eval_fraction=1), r"eval_fraction must be in \[0, 1\), got 1"),
        (lambda: DataArgs(max_rows=0), "max_rows must be at least 1, got 0"),
        (
            lambda: DataArgs(on_bad_row="drop"),
            "on_bad_row must be fail, skip or quarantine, got 'drop'",
        ),  # type: ignore[arg-type]
        (
            lambda: DataArgs(streaming=True),
            "streaming cannot hold out rows: name eval_datasets, or set --eval_fraction 0",
        ),
        (lambda: load_splits(DataArgs()), "datasets: name at least one dataset"),
    ],
)
def test_wrong_settings(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_wrong_source_on_the_command_line_keeps_its_message() -> None:
    with pytest.raises(ConfigError, match="my stories: no such file, and not a Hub id"):
        parse(DataArgs, argv=["--datasets", "my stories"])


def test_fraction_is_held_out_the_same_way_every_time() -> None:
    args = DataArgs(datasets=[Source(texts("a.jsonl", 100))], eval_fraction=0.1)
    first, second = load_splits(args), load_splits(args)
    assert (len(first["train"]), len(first["eval"])) == (90, 10)
    assert first["eval"]["text"][:] == second["eval"]["text"][:]
    assert set(load_splits(DataArgs(datasets=args.datasets, eval_fraction=0))) == {"train"}


def test_no_eval_rows_is_one_line() -> None:
    with pytest.raises(DataError, match=r"no eval rows: eval_fraction 0\.2 of 2 rows"):
        load_splits(DataArgs(datasets=[Source(texts("a.jsonl", 2))]))
    Path("empty.jsonl").touch()
    with pytest.raises(DataError, match=r"empty\.jsonl: the file has no rows"):
        load_splits(DataArgs(datasets=[Source("a.jsonl")], eval_datasets=[Source("empty.jsonl")]))


def test_eval_datasets_are_used_whole_and_kept_out_of_train(
    caplog: pytest.LogCaptureFixture,
) -> None:
    args = DataArgs(
        datasets=[Source(texts("a.jsonl", 50))], eval_datasets=[Source(texts("b.jsonl", 7))]
    )
    splits = load_splits(args)
    assert (len(splits["train"]), len(splits["eval"])) == (43, 7)
    assert "left out 7 of 50 train rows whose text is also in eval_datasets" in caplog.text


def test_mixture_of_hub_and_files(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = hub(monkeypatch, [{"text": f"h{number}"} for number in range(40)])
    mixture = load_mixture(
        [Source("user/set", "en", weight=1), Source(texts("a.jsonl", 40), weight=0.5)], max_rows=20
    )
    assert calls == [("user/set", "en", "train", False)]
    assert [sum(text[0] == letter for text in mixture["text"]) for letter in "ht"] == [20, 10]


def test_second_dataset_is_looked_for_before_the_first_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = hub(monkeypatch, [{"text": "x"}])
    with pytest.raises(DataError, match=r"gone\.jsonl: no such file"):
        load_splits(DataArgs(datasets=[Source("user/set"), Source("gone.jsonl")]))
    assert not calls
    with pytest.raises(DataError, match=r"gone\.jsonl: no such file"):
        iterate_rows([Source(texts("a.jsonl", 1)), Source("gone.jsonl")])


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ConnectionError("Couldn't reach 'user/set' on the Hub\nnow"),
            r"user/set: not found here, and not loaded from https://\S+: "
            r"private, missing, no token or no network "
            r"\(ConnectionError: Couldn't reach 'user/set' on the Hub now\)",
        ),
        (
            ValueError("Unknown split \"tran\". Should be one of ['train'].\nmore"),
            r"user/set on https://\S+: Unknown split",
        ),
    ],
)
def test_hub_failure_is_one_line(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str, streaming: bool
) -> None:
    hub(monkeypatch, error)
    with pytest.raises(DataError, match=message) as caught:
        args = DataArgs(datasets=[Source("user/set")], eval_fraction=0, streaming=streaming)
        load_splits(args, may_stream=True)
    assert "\n" not in str(caught.value)


def test_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    hub(monkeypatch, [{"text": f"h{number}"} for number in range(30)])
    local = Source(texts("a.jsonl", 30))
    for train in ([local], [Source("user/set")], [local, Source("user/set", weight=2)]):
        args = DataArgs(datasets=train, eval_datasets=[local], streaming=True, max_rows=10)
        with pytest.raises(ConfigError, match="all rows are read before the first step"):
            load_splits(args)
        splits = load_splits(args, may_stream=True)
        assert "text" in column_names(splits["train"])
        assert all(isinstance(rows, IterableDataset) for rows in splits.values())
        seen = [row["text"] for row in splits["train"]]
        assert seen == [row["text"] for row in load_splits(args, may_stream=True)["train"]]
        assert 10 <= len(set(seen)) == len(seen) <= 20
        assert [row["text"] for row in splits["eval"]] == [f"t{number}" for number in range(10)]
    with pytest.raises(DataError, match=r"gone\.jsonl: no such file"):
        args = DataArgs(datasets=[Source("gone.jsonl")], eval_fraction=0, streaming=True)
        load_splits(args, may_stream=True)


def test_quarantine_of_all_sources_goes_to_one_file_of_this_run() -> None:
    for name in ("a.jsonl", "b.jsonl"):
        texts(name, 30, name)
        with Path(name).open("a") as out:
            out.write("{cut\n")
    bad = Path("bad.jsonl")
    args = DataArgs(datasets=[Source("a.jsonl"), Source("b.jsonl")], on_bad_row="quarantine")
    for _ in range(2):
        load_splits(args, quarantine_file=bad)
        assert [json.loads(line)["file"] for line in bad.read_text().splitlines()] == [
            "a.jsonl",
            "b.jsonl",
        ]
    assert (
        sum(1 for _ in iterate_rows(args.datasets, on_bad_row="quarantine", quarantine_file=bad))
        == 60
    )
    assert len(bad.read_text().splitlines()) == 2
    with pytest.raises(ConfigError, match="no quarantine_file"):
        iterate_rows(args.datasets, on_bad_row="quarantine")


def test_iterate_rows_samples_by_weight() -> None:
    mixed = [Source(texts("a.jsonl", 400, "a"), weight=3), Source(texts("b.jsonl", 60, "b"))]
    sampled = [row["text"][0] for row in iterate_rows(mixed)]
    assert sampled.count("b") == 60
    assert 120 < sampled.count("a") < 240


def test_describe_sources(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    hub(monkeypatch, [{"text": "x"}])
    local, remote = Source(texts("a.jsonl", 30)), Source("user/set")
    assert [record["rows"] for record in describe_sources([local, remote])] == [None, None]
    log: SourceLog = {}
    load_mixture([local, remote], log=log)
    described = describe_sources([local, remote], log)
    assert described[0]["rows"] == 30
    assert described[0]["files"][0]["path"] == "a.jsonl"
    assert described[0]["files"][0]["bytes"] == (folder / "a.jsonl").stat().st_size
    assert len(described[0]["files"][0]["blake2b"]) == 32
    assert described[1] == {
        "path": "user/set",
        "files": [],
        "rows": 1,
        "name": None,
        "split": "train",
        "revision": None,
    }
    json.dumps(described)
    again = Source("a.jsonl")
    assert sum(1 for _ in iterate_rows([again], max_rows=12, log=log)) == 12
    assert describe_sources([again], log)[0]["rows"] == 12

    splits = load_splits(DataArgs(datasets=[again], eval_fraction=0.2))
    assert [record["rows"] for record in splits.inputs["train"]] == [30]
    assert splits.inputs["eval"] == []


def test_a_file_is_identified_once_on_its_way_to_the_splits(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    identified = []

    def data_file(path: Path) -> files.DataFile:
        identified.append(path.name)
        return files.DataFile(path, "txt", "")

    (folder / "a.txt").write_text("one\ntwo\nthree\nfour\n")
    monkeypatch.setattr(folders, "data_file", data_file)
    splits = load_splits(DataArgs(datasets=[Source("a.txt")], eval_fraction=0.5))
    assert len(splits["train"]) == len(splits["eval"]) == 2
    assert identified == ["a.txt"]


def test_require_columns() -> None:
    rows = Dataset.from_list([{"id": 1, "story_text": "a"}])
    require_columns(rows, {"story_text"}, recipe="clean")
    require_columns(rows, {"messages"}, {"id", "story_text"}, recipe="sft")
    for data in (rows, rows.to_iterable_dataset(), [{"id": 1, "story_text": "a"}]):
        with pytest.raises(
            DataError,
            match=r"clean needs .* text; found: id, story_text; --text_column story_text\?",
        ):
            require_columns(data, {"text"}, recipe="clean")
    with pytest.raises(
        DataError,
        match=(
            r"chosen \+ prompt \+ rejected or messages; found: .*; rename 'choosen' to 'chosen'\?"
        ),
    ):
        require_columns(
            [{"prompt": "", "choosen": "", "rejected": ""}],
            {"prompt", "chosen", "rejected"},
            {"messages"},
            recipe="dpo",
        )
    with pytest.raises(
        DataError, match="found: x, y; choose one with --text_column instead of 'text'"
    ):
        require_columns([{"x": 1, "y": 2}], {"text"}, recipe="clean")


@pytest.mark.shared
def test_real_mixture(shared_data: Path) -> None:
    args = DataArgs(
        datasets=[
            Source(f"{shared_data}/lm/*_en.jsonl.gz"),
            Source(f"{shared_data}/lm/zh_wiki.jsonl.gz"),
        ]
    )
    # the columns that only some of the files have are not read
    mixed = load_splits(DataArgs(datasets=[Source(f"{shared_data}/lm/*.jsonl.gz")]))
    assert all(isinstance(text, str) for text in mixed["train"]["text"])
    splits = load_splits(args)
    assert splits["train"].column_names == splits["eval"].column_names
    assert not set(splits["train"]["text"]) & set(splits["eval"]["text"])


def test_what_is_held_out_by_default_has_a_floor_on_small_data() -> None:
    by_default = DataArgs(datasets=[Source("a.jsonl")])
    rows = {20: 4, 68: 14, 160: 20, 400: 20, 10_000: 500}
    assert {count: round(count * by_default.held_out_share(count)) for count in rows} == rows
    assert by_default.held_out_share() == 0.05

    asked = DataArgs(datasets=[Source("a.jsonl")], eval_fraction=0.01)
    assert asked.held_out_share(68) == 0.01


def test_a_variable_at_the_beginning_of_a_path_is_expanded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a YAML file, which no shell has read."""
    monkeypatch.setenv("HFSTACK_DATA", str(folder))
    texts("a.jsonl", 2)
    rows = load_mixture([Source("$HFSTACK_DATA/a.jsonl")])
    assert [row["id"] for row in rows] == [0, 1]
