"""The clean recipe, from files to files, with its record, its options and its one-line errors."""

import gzip
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hfstack.data.cleaning import filters
from hfstack.demo.noise import DROPPED, REPAIRED, noisy_corpus, score_cleaning
from hfstack.errors import ConfigError, DataError, MachineError, Preempted
from hfstack.runs.record import read_run

Recipe = Callable[..., dict[str, float]]
YAML = Path(__file__).parents[2] / "recipes" / "clean.yaml"
LONG = (
    "A brave rabbit ran up the hill, saw the whole forest and called number {} with joy in the "
    "evening sun."
)


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A file with good stories, noise, copies and near copies, English and Chinese."""
    stories = [
        "Once upon a time a small fox found a red ball near the river. It was very happy.",
        "The owl lived in an old tree and knew every animal of the forest by its name.",
        "白日依山盡，黃河入海流。\n欲窮千里目，更上一層樓。",
        "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。",
        "Tom &amp; Jerry doesnâ€™t sleep; write to tom@example.org or call (212) 555-0123.",
    ]
    noise = [
        "ok",
        "buy now " * 40,
        "### $$$ %%% ((( ))) *** !!! ??? +++ === ---",
        stories[0],
        stories[2] + "\n",
    ]
    near = ["Once upon a time a small fox found a red ball near the river! It was very HAPPY"]
    rows = [
        {"id": i, "text": text, "source": "made"}
        for i, text in enumerate([*stories, *noise, *near])
    ]
    return write_rows(tmp_path / "raw.jsonl", rows)


def test_from_its_yaml(run_recipe: Recipe, raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = (
        "--config",
        YAML,
        "--datasets",
        raw,
        "--output_dir",
        out,
        "--eval_fraction",
        "0",
        "--save_dropped",
    )
    metrics = run_recipe("clean", *options)
    kept, dropped = read_rows(out / "train.jsonl"), read_rows(out / "dropped.jsonl")
    assert [row["id"] for row in kept] == [0, 1, 2, 3, 4]
    assert kept[4] == {
        "id": 4,
        "text": "Tom & Jerry doesn’t sleep; write to [EMAIL] or call [PHONE].",
        "source": "made",
    }
    assert [(row["id"], row["dropped_reason"].partition(":")[0]) for row in dropped] == [
        *(
            (5, "too_short"),
            (6, "repeated_ngrams"),
            (7, "too_many_symbols"),
            (8, "exact_duplicate"),
        ),
        *((9, "exact_duplicate"), (10, "near_duplicate")),
    ]
    assert (metrics["documents_in"], metrics["documents_out"], metrics["documents_train"]) == (
        11,
        5,
        5,
    )
    assert metrics["duplicates_removed"] == 3
    assert metrics["documents_masked"] == metrics["documents_repaired"] == 1
    assert metrics["documents_per_s"] > 0
    assert metrics["duplicate_index_bytes"] > 0
    record = read_run(out)
    assert (record.status, record.metrics) == ("finished", metrics)
    assert record.data[0]["path"] == str(raw)
    assert record.tables["dropped_documents"]["columns"] == [
        "reason",
        "documents",
        "share",
        "examples",
    ]
    assert ["exact_duplicate", 2] in [row[:2] for row in record.tables["dropped_documents"]["rows"]]
    assert not (out / "eval.jsonl").exists()
    assert not list(out.glob("*.partial"))
    assert "masked email" in [row[0] for row in record.tables["changes"]["rows"]]


def test_finds_planted_faults(run_recipe: Recipe, tmp_path: Path) -> None:
    """On stories with known faults: what should go goes, what should be repaired changes, and no
    good story is lost."""
    rows = list(noisy_corpus(0, 1500, share=0.3))
    raw = write_rows(
        tmp_path / "raw.jsonl", [{"id": row["id"], "text": row["text"]} for row in rows]
    )
    run_recipe("clean", "--datasets", raw, "--output_dir", tmp_path / "out")
    kept = {row["id"]: row["text"] for row in read_rows(tmp_path / "out" / "train.jsonl")}
    score = score_cleaning(rows, kept)
    assert score["precision"] == score["kept_good"] == 1.0
    assert score["recall_near_duplicate"] > 0.85
    assert all(score[f"recall_{fault}"] == 1.0 for fault in DROPPED if fault != "near_duplicate")
    same = [
        row["planted"]
        for row in rows
        if row["planted"] in REPAIRED and kept[row["id"]] == row["text"]
    ]
    assert len(same) <= 5, f"faults left as they were: {same}"  # addresses of private networks


def test_same_files_twice_and_stable_split(run_recipe: Recipe, tmp_path: Path) -> None:
    """The split depends on each text alone: reordering and adding documents moves none from side to
    side.
    """
    rows = [{"text": f"{number} {LONG.format(number)} {number**3}"} for number in range(300)]
    options = ("--near_duplicate_threshold", "0", "--eval_fraction", "0.2")
    sides = []
    for name, part in (("a", rows), ("b", rows), ("c", rows[::-1][:200])):
        raw = write_rows(tmp_path / f"{name}.jsonl", part)
        metrics = run_recipe("clean", "--datasets", raw, "--output_dir", tmp_path / name, *options)
        assert metrics["documents_train"] + metrics["documents_eval"] == len(part)
        sides.append(
            [
                (tmp_path / name / f"{side}.jsonl").read_text(encoding="utf-8")
                for side in ("train", "eval")
            ]
        )
    assert sides[0] == sides[1]
    for all_rows, some_rows in zip(sides[0], sides[2], strict=True):
        assert set(some_rows.splitlines()) <= set(all_rows.splitlines())
    assert 30 < len(sides[0][1].splitlines()) < 90


def test_decontaminates(run_recipe: Recipe, raw: Path, tmp_path: Path) -> None:
    question = {
        "q": (
            "What did the small fox find? Once upon a time a small fox found a red ball near "
            "the river."
        )
    }
    exam = write_rows(tmp_path / "exam.jsonl", [question])
    options = ("--datasets", raw, "--output_dir", tmp_path / "out", "--decontaminate", exam)
    metrics = run_recipe("clean", *options)
    assert metrics["dropped_contaminated"] == 3
    assert [entry["role"] for entry in read_run(tmp_path / "out").data] == [
        "train",
        "decontaminate",
    ]
    assert "fox" not in (tmp_path / "out" / "train.jsonl").read_text()


def test_switches(run_recipe: Recipe, raw: Path, tmp_path: Path) -> None:
    switches = ("--strip_markup", "false", "--mask_pii", "none", "--drop_duplicates", "false")
    options = ("--near_duplicate_threshold", "0", *switches)
    metrics = run_recipe("clean", "--datasets", raw, "--output_dir", tmp_path / "out", *options)
    assert (
        metrics["duplicates_removed"]
        == metrics["documents_masked"]
        == metrics["duplicate_index_bytes"]
        == 0
    )
    assert (
        "Tom &amp; Jerry doesn’t sleep; write to tom@example.org"
        in (tmp_path / "out" / "train.jsonl").read_text()
    )


def test_leaves_programs_as_they_are(run_recipe: Recipe, tmp_path: Path) -> None:
    programs = [
        "import math\n\n\n\ndef length(point):\n    ## by Pythagoras\n"
        "    return math.sqrt(point[0]**2 + point[1]**2), [[point]]\n",
        "#include <map>\n#include <vector>\n\nstd::map<int, std::vector<a>> groups;\n"
        "bool between(int low, int high) { return low<b && a>high; }\n",
        '[[task]]\nname = "collect"\nruns = "<b>daily</b>"\n\n\n[[task]]\nname = "report"\n',
    ]
    rows = [{"content": text} for text in [*programs, f"<p>{LONG.format('**two**')}</p>"]]
    raw = write_rows(tmp_path / "raw.jsonl", rows)
    metrics = run_recipe(
        "clean", "--datasets", raw, "--text_column", "content", "--output_dir", tmp_path / "out"
    )
    kept = [row["content"] for row in read_rows(tmp_path / "out" / "train.jsonl")]
    assert kept == [*(text.strip("\n") for text in programs), LONG.format("two")]
    assert metrics["documents_code"] == 3


def test_rows_without_text(run_recipe: Recipe, tmp_path: Path) -> None:
    raw = write_rows(tmp_path / "raw.jsonl", [{"body": LONG}, {"body": None}])
    options = ("--datasets", raw, "--text_column", "body", "--output_dir")
    with pytest.raises(DataError, match="row 2: column 'body' holds NoneType instead of text"):
        run_recipe("clean", *options, tmp_path / "fail")
    assert read_run(tmp_path / "fail").status == "failed"
    assert not list((tmp_path / "fail").glob("*.jsonl*"))
    metrics = run_recipe("clean", *options, tmp_path / "skip", "--on_bad_row", "skip")
    assert (metrics["documents_out"], metrics["dropped_no_text"]) == (1, 1)


@pytest.mark.parametrize(
    ("rows", "options", "error", "message"),
    [
        (
            [{"id": 1, "txt": LONG}],
            [],
            DataError,
            r"no column 'text'; found: id, txt; --text_column txt\?",
        ),
        (
            [{"text": "ok"}, {"text": "no"}],
            [],
            DataError,
            "all 2 documents were dropped: too_short 2; for example",
        ),
        (
            [{"text": LONG}],
            ["--decontaminate", "gone.jsonl"],
            DataError,
            r"--decontaminate: .*gone\.jsonl",
        ),
        (
            [{"text": LONG}],
            ["--eval_fraction", "0.0001"],
            DataError,
            r"leaves no document for train\.jsonl",
        ),
        (
            [{"text": LONG}],
            ["--eval_fraction", "1"],
            ConfigError,
            r"eval_fraction must be in \[0, 1\), got 1",
        ),
        ([{"text": LONG}], ["--max_rows", "0"], ConfigError, "max_rows must be at least 1, got 0"),
        (
            [{"text": LONG}],
            ["--mask_pii", "emial"],
            ConfigError,
            "mask_pii: unknown kind 'emial'; choose from",
        ),
        ([{"text": LONG}], ["--near_duplicate_threshold", "2"], ConfigError, "must be in .* got 2"),
    ],
)
def test_mistakes_end_in_one_line(
    run_recipe: Recipe,
    tmp_path: Path,
    rows: list[Any],
    options: list[str],
    error: type[Exception],
    message: str,
) -> None:
    raw = write_rows(tmp_path / "raw.jsonl", rows)
    with pytest.raises(error, match=message) as caught:
        run_recipe("clean", "--datasets", raw, "--output_dir", tmp_path / "out", *options)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").glob("*.jsonl*"))


def test_datasets_are_needed(run_recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="datasets: name at least one"):
        run_recipe("clean", "--output_dir", tmp_path / "out")


@pytest.mark.shared
def test_real_chinese_verse_and_prose(
    run_recipe: Recipe, shared_data: Path, tmp_path: Path
) -> None:
    """600 poems and 200 paragraphs, each twice: every copy goes, almost nothing else does."""
    rows = []
    for name, count in (("zh_poetry", 600), ("zh_wiki", 200)):
        with gzip.open(shared_data / "lm" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            rows += [
                {"text": json.loads(line)["text"]}
                for line, _ in zip(lines, range(count), strict=False)
            ]
    raw = write_rows(tmp_path / "raw.jsonl", rows + rows)
    metrics = run_recipe("clean", "--datasets", raw, "--output_dir", tmp_path / "out")
    assert metrics["dropped_exact_duplicate"] >= 790
    assert metrics["documents_out"] >= 785
    assert "dropped_too_short" not in metrics


def test_two_workers_write_the_same_bytes(run_recipe: Recipe, tmp_path: Path) -> None:
    rows = [{"text": row["text"]} for row in noisy_corpus(3, 600, share=0.3)]
    raw = write_rows(tmp_path / "raw.jsonl", rows)
    options = ("--save_dropped", "true", "--eval_fraction", "0.1", "--datasets", raw)

    metrics = [
        run_recipe("clean", *options, "--workers", workers, "--output_dir", tmp_path / workers)
        for workers in ("1", "2")
    ]
    for name in ("train", "eval", "dropped"):
        written = [(tmp_path / workers / f"{name}.jsonl").read_bytes() for workers in ("1", "2")]
        assert written[0] == written[1] != b""

    timed = {"documents_per_s", "bytes_per_cpu_s"}
    one, two = ({name: each[name] for name in each.keys() - timed} for each in metrics)
    assert one == two
    tables = [read_run(tmp_path / workers).tables for workers in ("1", "2")]
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    ("signum", "whom", "error", "message", "status"),
    [
        (signal.SIGKILL, os.getpid, MachineError, "one of 2 workers was ended", "failed"),
        (signal.SIGINT, os.getppid, Preempted, "stopped by SIGINT", "preempted"),
    ],
)
def test_signals_leave_nothing_half_written(
    run_recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    signum: int,
    whom: Callable[[], int],
    error: type[Exception],
    message: str,
    status: str,
) -> None:
    """A worker that the system kills, and Ctrl-C, while two workers clean."""

    def send_signal(text: str) -> None:
        if "number 150 " in text:
            os.kill(whom(), signum)

    # the recipe's first filter, which runs in the workers
    monkeypatch.setattr(filters, "too_short", send_signal)
    raw = write_rows(tmp_path / "raw.jsonl", [{"text": LONG.format(n)} for n in range(2000)])
    with pytest.raises(error, match=message) as caught:
        run_recipe("clean", "--datasets", raw, "--workers", 2, "--output_dir", tmp_path / "out")

    assert "\n" not in str(caught.value)
    assert read_run(tmp_path / "out").status == status
    assert not [path.name for path in (tmp_path / "out").iterdir() if "jsonl" in path.name]


def test_a_share_of_less_than_one_document_holds_out_one(
    run_recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = [f"{LONG} This is the story of owl number {number}." for number in range(12)]
    raw = tmp_path / "raw.jsonl"
    options = ("--datasets", raw, "--near_duplicate_threshold", 0)
    found = {}
    for fraction in (0.001, 0.4):
        raw.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        out = tmp_path / str(fraction)
        run_recipe("clean", *options, "--eval_fraction", fraction, "--output_dir", out)
        for side in ("train", "eval"):
            lines = (out / f"{side}.jsonl").read_text().splitlines()
            found[fraction, side] = [json.loads(line)["text"] for line in lines]
        both = found[fraction, "train"] + found[fraction, "eval"]
        assert sorted(both) == sorted(texts)
        for side in ("train", "eval"):
            assert found[fraction, side] == [
                text for text in texts if text in found[fraction, side]
            ]

    assert "eval_fraction 0.001 holds out none of 12 documents, so one is held out" in caplog.text
    assert "eval_fraction 0.4" not in caplog.text
    assert len(found[0.001, "eval"]) == 1 < len(found[0.4, "eval"])
    # and a larger share holds out the same one
    assert set(found[0.001, "eval"]) < set(found[0.4, "eval"])
