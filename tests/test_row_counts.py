"""Rows read are rows used plus those left out, in the log and in run.json."""

import json
from dataclasses import asdict

from hfstack.data.sources import ReadSource
from hfstack.row_counts import RowCounts, read_row_counts


def test_what_is_read_is_used_or_left_out_with_a_reason() -> None:
    counts = RowCounts()
    bad = ({"bad JSON": 2}, {"bad JSON": 1, "invalid UTF-8": 1})
    counts.read_sources("train", [ReadSource([], 50, one, ["meta"]) for one in bad])
    counts.hold_out(20)
    counts.take_back(3)  # as for a class with one row
    counts.leave_out("train", "empty", 0)
    counts.leave_out("train", "too long", 5)
    counts.leave_out("eval", "empty", 1)
    counts.name_columns(["text", "label", "url"], ["text", None, "label", "label_name"])
    counts.name_columns(["other"], ["other"])

    train, held = counts.splits["train"], counts.splits["eval"]
    assert (train.read, train.used, held.read, held.used) == (104, 78, 17, 16)
    assert all(each.read == each.used + sum(each.left_out.values()) for each in (train, held))
    assert counts.lines() == [
        "train: 104 rows read, 78 used; left out: 3 bad JSON, 1 invalid UTF-8, "
        "17 held out for evaluation, 5 too long",
        "eval: 17 rows read, 16 used; left out: 1 empty",
        "columns used: text, label; not used: url; not alike in all rows, and left out: meta",
    ]
    assert read_row_counts(json.loads(json.dumps(asdict(counts)))) == counts


def test_rows_that_become_something_else_are_counted_as_that() -> None:
    counts = RowCounts()
    counts.read("train", 10)
    counts.leave_out("train", "ties", 2)
    counts.turn_into("train", "pairs", 14)
    counts.leave_out("train", "too long", 4)
    counts.name_columns(["prompt", "answers", "id"], ["prompt"], rest_for_rewards=True)
    assert counts.lines() == [
        "train: 10 rows read, which make 14 pairs, 10 used; left out: 2 ties, 4 too long",
        "columns used: prompt; not used: none; given to the rewards: answers, id",
    ]
