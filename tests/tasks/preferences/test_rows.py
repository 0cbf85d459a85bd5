"""Preference rows of every kind become pairs or labels, with ties, duplicates and contradictions
settled.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from hfstack.data.sources import DataArgs, Source
from hfstack.errors import ConfigError, DataError
from hfstack.row_counts import RowCounts
from hfstack.tasks.preferences.data import (
    add_label_noise,
    judged_pairs,
    length_statistics,
    load_preferences,
    split_by_prompt,
    to_labels,
    to_pairs,
)
from hfstack.tasks.preferences.encode import encode_answer, encode_pairs, truncate_pair
from hfstack.tasks.preferences.rows import PreferenceArgs, PreferenceCounts, answer_text, answers_of
from hfstack.tokens.train_tokenizer import train_tokenizer
from tests.conftest import SENTENCES
from tests.tiny_encoder import tiny_bert_tokenizer


def pair(prompt: str, chosen: Any, rejected: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def test_pairs_are_kept_as_they_are_and_duplicates_once():
    counts = PreferenceCounts()
    rows = [pair("a", "x", "y"), pair("a", "x", "y"), pair("b", "x", "y")]
    assert to_pairs(rows, counts=counts) == [pair("a", "x", "y"), pair("b", "x", "y")]
    assert (counts.rows, counts.kept, counts.duplicates, counts.prompts) == (3, 2, 1, 2)


def test_the_majority_of_a_contradiction_is_kept_and_a_draw_is_not():
    counts = PreferenceCounts()
    rows = [
        pair("a", "x", "y"),
        pair("a", "y", "x"),
        pair("a", "x", "y"),
        pair("b", "x", "y"),
        pair("b", "y", "x"),
    ]
    assert to_pairs([*rows, pair("c", "x", "y")], counts=counts) == [
        pair("a", "x", "y"),
        pair("c", "x", "y"),
    ]
    assert counts.contradictions == 2


def test_ratings_make_every_pair_with_a_gap():
    rows = [
        {"prompt": "a", "completion": text, "rating": score}
        for text, score in (("x", 1), ("y", 5), ("z", 5))
    ]
    counts = PreferenceCounts()
    assert to_pairs(rows, counts=counts) == [pair("a", "y", "x"), pair("a", "z", "x")]
    assert counts.ties == 1
    rows.append({"prompt": "a", "completion": "w", "rating": 0})
    assert to_pairs(rows, PreferenceArgs(max_pairs_per_prompt=1)) == [pair("a", "y", "w")]


def test_rankings_rated_lists_and_thumbs():
    ranked = [{"prompt": "a", "completions": ["x", "y", "z"], "ranks": [2, 1, 2]}]
    counts = PreferenceCounts()
    assert to_pairs(ranked, counts=counts) == [pair("a", "y", "x"), pair("a", "y", "z")]
    assert counts.ties == 1
    rated = [{"prompt": "a", "completions": ["x", "y"], "rating": [0.1, 0.2]}]
    assert to_pairs(rated) == [pair("a", "y", "x")]
    thumbs = [
        {"prompt": "a", "completion": text, "label": good}
        for text, good in (("x", True), ("y", False))
    ]
    assert to_pairs(thumbs) == [pair("a", "x", "y")]
    with pytest.raises(DataError, match=r"2 completions but 1 scores"):
        to_pairs([{"prompt": "a", "completions": ["x", "y"], "ranks": [1]}])


def test_labels_of_thumbs_pairs_and_ratings():
    thumbs = [
        {"prompt": "a", "completion": text, "label": good}
        for text, good in (("x", 1), ("y", 0), ("y", 1))
    ]
    counts = PreferenceCounts()
    assert to_labels(thumbs, counts=counts) == [{"prompt": "a", "completion": "x", "label": True}]
    assert counts.contradictions == 1
    assert [row["label"] for row in to_labels([pair("a", "x", "y")])] == [True, False]
    rated = [
        {"prompt": "a", "completion": text, "rating": score} for text, score in (("x", 1), ("y", 5))
    ]
    assert [row["label"] for row in to_labels(rated, PreferenceArgs(rating_threshold=3))] == [
        False,
        True,
    ]
    with pytest.raises(ConfigError, match="--rating_threshold"):
        to_labels(rated)


def test_conversations_share_their_beginning_as_the_prompt():
    question, good, bad = (
        turn("user", "hi"),
        turn("assistant", "hello"),
        turn("assistant", "go away"),
    )
    rows = [{"chosen": [question, good], "rejected": [question, bad]}]
    expected = {"prompt": [question], "chosen": [good], "rejected": [bad]}
    assert to_pairs(rows) == [expected]
    assert to_pairs([{"prompt": "hi", "chosen": [good], "rejected": [bad]}]) == [expected]
    assert to_pairs([pair("hi", "hello", "go away")], PreferenceArgs(conversational=True)) == [
        expected
    ]
    assert answer_text(expected["prompt"]) == "hi"
    with pytest.raises(DataError, match="chosen and rejected are the same"):
        to_pairs([{"chosen": [question, good], "rejected": [question, good]}])


def test_conversations_are_read_as_public_data_writes_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    call = {"name": "find_fox", "arguments": '{"den": 4}'}
    rows = [
        {
            "prompt": [{"from": "human", "value": f"Where {number}?"}],
            "chosen": {"role": "assistant", "tool_calls": [{"function": call}]},
            "rejected": [turn("assistant", "No idea.")],
            "system": "Be brief.",
            "tools": [{"name": "find_fox", "parameters": {"den": {"type": "number"}}}],
            "source": "x",
        }
        for number in range(4)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataArgs(datasets=[Source(str(path))], eval_fraction=0)
    found = load_preferences(data, PreferenceArgs())["train"][0]
    assert found["prompt"] == [turn("system", "Be brief."), turn("user", "Where 0?")]

    # no key of another turn, which a template would read
    function = {"name": "find_fox", "arguments": {"den": 4}}
    calls = [{"type": "function", "function": function}]
    assert found["chosen"] == [turn("assistant", "") | {"tool_calls": calls}]
    assert found["rejected"] == [turn("assistant", "No idea.")]
    assert json.loads(found["tools"])[0]["function"]["name"] == "find_fox"
    assert "columns prompt, chosen, rejected, system, tools; not read: source" in caplog.text

    labels = load_preferences(data, PreferenceArgs(), form="labels")["train"]
    assert labels[0]["completion"] == found["chosen"] and labels[0]["label"] is True
    assert labels["tools"][:] == [found["tools"]] * 8

    # answers that hold their prompt, beside a prompt of text
    whole = [turn("user", "hi")], [turn("assistant", "a")], [turn("assistant", "b")]
    row = pair("hi", [*whole[0], *whole[1]], [*whole[0], *whole[2]]) | {"system": "Be kind."}
    assert to_pairs([row]) == [
        {
            "prompt": [turn("system", "Be kind."), *whole[0]],
            "chosen": whole[1],
            "rejected": whole[2],
        }
    ]

    # plain pairs have no place for them
    assert to_pairs([pair("a", "x", "y") | {"system": "Be kind."}]) == [pair("a", "x", "y")]
    assert "the columns system are not read" in caplog.text
    with pytest.raises(DataError, match="preference row 1: a part of content is 'image'"):
        to_pairs([pair("a", "x", [turn("assistant", [{"type": "image"}])])])


def test_scores_beside_pairs_are_named_and_compared(caplog):
    scores = [{"score_chosen": c, "score_rejected": r} for c, r in (("1.5", 2), (3, 3), (9, 1))]
    rows = [pair(str(n), "x", "y") | each | {"label": 1} for n, each in enumerate(scores)]
    counts = RowCounts()
    to_pairs([row | {"margin": 2.0} for row in rows], row_counts=counts)
    assert counts.columns_used == ["prompt", "chosen", "rejected"]
    assert counts.columns_not_used == ["score_chosen", "score_rejected", "label", "margin"]
    assert "of 3 pairs 1 have the higher score on the rejected side, and 1 equal" in caplog.text
    assert "the column 'margin' is not read" in caplog.text
    caplog.clear()
    to_pairs([rows[2]])
    assert not [one for one in caplog.records if one.levelname == "WARNING"]


def test_faults_stop_or_are_collected():
    with pytest.raises(DataError, match=r"preference row 2: chosen and rejected are the same: 'x'"):
        to_pairs([pair("a", "x", "y"), pair("b", "x", "x")])
    with pytest.raises(DataError, match=r"row 1: rejected is empty"):
        to_pairs([pair("a", "x", "  ")])
    with pytest.raises(DataError, match=r"score must be a number .* got 'good'"):
        to_pairs([{"prompt": "a", "completion": "x", "rating": "good"}])
    bad: list[dict] = []
    assert (
        len(to_pairs([pair("a", "x", "y"), pair("b", "x", "x"), pair("c", "", "x")], bad=bad)) == 1
    )
    assert [row["fault"] for row in bad] == [
        "chosen and rejected are the same: 'x'",
        "chosen is empty",
    ]
    with pytest.raises(DataError, match="no pairs in 2 rows: 1 ties"):
        to_pairs([{"prompt": "a", "completion": text, "rating": 1} for text in "xy"])
    with pytest.raises(DataError, match="has no rows"):
        to_pairs([])


def test_bad_rows_are_named_together_by_file_and_line(tmp_path: Path):
    rows = [pair(f"p{number}", "x", "x" if number % 2 else "y") for number in range(14)]
    source = write(tmp_path / "train.jsonl", rows)
    with pytest.raises(DataError) as caught:
        load_preferences(DataArgs([source], eval_fraction=0), PreferenceArgs())
    message = str(caught.value)
    assert message.startswith("7 rows cannot be used, first: ")
    lines = [f"train.jsonl line {line}: chosen and rejected" for line in (2, 4, 6, 8, 10)]
    assert all(line in message for line in lines) and "line 12:" not in message

    rated = [{"prompt": "a", "completion": "x", "label": label} for label in ("good", 2, True)]
    with pytest.raises(
        DataError, match=r"2 rows .*label is 'good', no thumb.*label is 2, no thumb"
    ):
        to_labels(rated)


def test_a_prompt_beside_whole_conversations_is_theirs():
    system, asked = turn("system", "Be kind."), turn("user", "hi")
    good, bad = turn("assistant", "a"), turn("assistant", "b")
    chosen, rejected = [asked, good], [asked, bad]
    read = {"chosen": [good], "rejected": [bad]}

    # the question stands in both, and is asked once
    for prompt, expected in (
        ([system, asked], [system, asked]),
        ([asked], [asked]),
        ([system], [system, asked]),
        ("hi", [asked]),
        ("Human: hi", [asked]),
        ([turn("user", "ho"), turn("assistant", "hey")], None),
    ):
        expected = expected or [turn("user", "ho"), turn("assistant", "hey"), asked]
        assert to_pairs([pair(prompt, chosen, rejected)]) == [{"prompt": expected, **read}]

    for prompt, problem in (
        ("Where?", "prompt is 'Where\\?', which the turns of the answers do not hold"),
        ([turn("user", "Where?")], "chosen begins with another turn than prompt ends"),
    ):
        with pytest.raises(DataError, match=problem):
            to_pairs([pair(prompt, chosen, rejected)])

    # answers of different questions are no preference
    other = [turn("user", "ho"), bad]
    for begun in (chosen, [system, *chosen]):
        with pytest.raises(DataError, match="chosen and rejected begin with different turns"):
            to_pairs([{"chosen": begun, "rejected": other}])


def test_tables_hold_thumbs_and_turns_as_text():
    rows = [
        {"prompt": "a", "completion": text, "label": label}
        for text, label in (("x", "True"), ("y", "FALSE "), ("z", "1"), ("w", "0"))
    ]
    assert [row["label"] for row in to_labels(rows)] == [True, False, True, False]

    sides = [[turn("user", "hi"), turn("assistant", text)] for text in "xy"]
    written = {"chosen": repr(sides[0]), "rejected": repr(sides[1])}  # as pandas writes them
    assert to_pairs([written]) == to_pairs([{"chosen": sides[0], "rejected": sides[1]}])


def test_other_column_names_are_told_with_their_flags():
    rows = [{"question": "a", "good": "x", "bad": "y"}]
    with pytest.raises(DataError) as caught:
        to_pairs(rows)
    message = str(caught.value)
    assert "question, good, bad" in message and "--chosen_column" in message and "\n" not in message
    args = PreferenceArgs(prompt_column="question", chosen_column="good", rejected_column="bad")
    assert to_pairs(rows, args) == [pair("a", "x", "y")]
    with pytest.raises(DataError, match=r"--completion_column or --completions_column"):
        answers_of({"prompt": "a", "reply": "x"}, PreferenceArgs())


def test_no_prompt_is_on_both_sides():
    rows = Dataset.from_list([pair(f"Prompt {i % 20}", f"x{i}", f"y{i}") for i in range(100)])
    rows = Dataset.from_list([*rows, pair("  PROMPT  3", "other", "words")])
    train, held_out = split_by_prompt(rows, 0.2, 0)
    sides = [
        {" ".join(text.split()).lower() for text in side["prompt"]} for side in (train, held_out)
    ]
    assert not sides[0] & sides[1] and len(train) + len(held_out) == 101 and len(held_out) >= 15
    assert split_by_prompt(rows, 0.2, 0)[1].to_list() == held_out.to_list()
    assert split_by_prompt(rows, 0.2, 1)[1].to_list() != held_out.to_list()


def write(path: Path, rows: list[dict]) -> Source:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Source(str(path))


def test_loading_splits_counts_and_keeps_eval_prompts_out(tmp_path: Path):
    train = write(tmp_path / "train.jsonl", [pair(f"p{i}", "good", "bad") for i in range(40)])
    counts: dict[str, PreferenceCounts] = {}
    splits = load_preferences(
        DataArgs([train], eval_fraction=0.25), PreferenceArgs(), counts=counts
    )
    assert len(splits["train"]) + len(splits["eval"]) == counts["train"].kept == 40
    held_out = write(
        tmp_path / "eval.jsonl", [pair("P0 ", "good", "bad"), pair("q", "good", "bad")]
    )
    splits = load_preferences(DataArgs([train], [held_out]), PreferenceArgs())
    assert len(splits["train"]) == 39 and "p0" not in splits["train"]["prompt"]
    assert splits["eval"].column_names == ["prompt", "chosen", "rejected"]
    with pytest.raises(ConfigError, match="name at least one file"):
        load_preferences(DataArgs(), PreferenceArgs())
    with pytest.raises(ConfigError, match="streaming"):
        load_preferences(DataArgs([train], streaming=True, eval_fraction=0), PreferenceArgs())


def test_quarantined_rows_are_written_beside(tmp_path: Path):
    source = write(tmp_path / "train.jsonl", [pair("a", "x", "y"), pair("b", "x", "x")])
    args = DataArgs([source], eval_fraction=0, on_bad_row="quarantine")
    splits = load_preferences(args, PreferenceArgs(), quarantine_file=tmp_path / "quarantine.jsonl")
    assert len(splits["train"]) == 1
    kept = json.loads((tmp_path / "quarantine-train-preferences.jsonl").read_text())
    assert kept["row"]["prompt"] == "b" and "same" in kept["fault"]


def test_label_noise_swaps_exactly_its_share_and_says_where():
    rows = [
        pair(f"p{i}", "good", "bad") | {"chosen_score": 1.0, "rejected_score": 0.0}
        for i in range(20)
    ]
    noisy = add_label_noise(Dataset.from_list(rows), 0.25, seed=1).to_list()
    assert sum(row["flipped"] for row in noisy) == 5
    assert all(
        (row["chosen"] == "bad") == row["flipped"] == (row["chosen_score"] == 0.0) for row in noisy
    )
    assert noisy == add_label_noise(Dataset.from_list(rows), 0.25, seed=1).to_list()
    with pytest.raises(ConfigError, match=r"\[0, 0.5\]"):
        add_label_noise(Dataset.from_list(rows), 0.7, seed=1)


def test_judged_pairs_carry_their_scores():
    scores = {("a", "x"): 0.25, ("a", "y"): 0.75, ("b", "z"): 1.0}
    (only,) = judged_pairs(scores, PreferenceArgs(conversational=True))
    assert (only["chosen_score"], only["rejected_score"]) == (0.75, 0.25)
    assert only["chosen"] == [turn("assistant", "y")]


def test_length_statistics_by_hand():
    rows = [pair("a", "1234", "12"), pair("a", "12", "12"), pair("a", "1", "1234")]
    found = length_statistics(rows)
    assert (
        found["chosen_characters_mean"] == pytest.approx(7 / 3)
        and found["rejected_characters_median"] == 2
    )
    assert found["chosen_longer_share"] == 0.5


def test_text_ends_with_eos_and_the_prompt_is_known(tiny_tokenizer):
    token_ids, begin, end = encode_answer(tiny_tokenizer, "The owl ", "was kind")
    assert (
        token_ids[-1] == tiny_tokenizer.eos_token_id
        and token_ids.count(tiny_tokenizer.eos_token_id) == 1
    )
    assert tiny_tokenizer.decode(token_ids[:-1]) == "The owl was kind" and begin == 0
    assert "The owl".startswith(tiny_tokenizer.decode(token_ids[begin:end]).strip())
    with pytest.raises(ConfigError, match="no chat template"):
        encode_answer(tiny_tokenizer, [turn("user", "hi")], [turn("assistant", "x")])


def test_a_conversation_goes_through_the_template():
    tokenizer = train_tokenizer(SENTENCES * 20, kind="bpe", vocab_size=300)
    question, reply = [turn("user", "who ran?")], [turn("assistant", "the fox")]
    token_ids, begin, end = encode_answer(tokenizer, question, reply)
    assert tokenizer.decode(token_ids) == "<|user|>who ran?<|end|><|assistant|>the fox<|end|>"
    assert tokenizer.decode(token_ids[begin:end]) == "<|user|>who ran?<|end|><|assistant|>"


def test_an_encoder_reads_two_segments_and_needs_no_eos():
    tokenizer = tiny_bert_tokenizer()
    assert tokenizer.eos_token_id is None
    token_ids, begin, end = encode_answer(tokenizer, "the owl", "was kind")
    assert token_ids[0] == tokenizer.cls_token_id and token_ids[-1] == tokenizer.sep_token_id
    assert (
        tokenizer.decode(token_ids[begin:end]) == "the owl"
        and token_ids.count(tokenizer.sep_token_id) == 2
    )


def test_a_tokenizer_without_any_end_is_refused(tiny_tokenizer):
    from transformers import PreTrainedTokenizerFast

    bare = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer.backend_tokenizer)
    with pytest.raises(ConfigError, match="neither an eos token nor cls and sep"):
        encode_answer(bare, "a", "b")


def test_shorten_takes_the_prompt_first_and_never_the_last_token():
    assert truncate_pair([0, 1, 2, 3, 4, 5], 1, 3, max_length=6) == [0, 1, 2, 3, 4, 5]
    assert truncate_pair([0, 1, 2, 3, 4, 5], 1, 3, max_length=5) == [0, 2, 3, 4, 5]
    assert truncate_pair([0, 1, 2, 3, 4, 5], 1, 3, max_length=3) == [0, 3, 5]


def test_long_pairs_fail_are_cut_or_dropped(tiny_tokenizer):
    rows = [pair("Once upon a time " * 20, "yes", "no"), pair("a", "yes", "no")]
    with pytest.raises(
        DataError, match=r"train: 1 of 2 pairs are longer than 40 tokens .* --overlong truncate"
    ):
        encode_pairs(rows, tiny_tokenizer, max_length=40)
    encoded, kept = encode_pairs(rows, tiny_tokenizer, max_length=40, overlong="truncate")
    assert kept == [0, 1] and len(encoded[0]["chosen_ids"]) == 40
    assert tiny_tokenizer.decode(encoded[0]["chosen_ids"]).endswith("time yes<|endoftext|>")
    encoded, kept = encode_pairs(rows, tiny_tokenizer, max_length=40, overlong="drop")
    assert kept == [1] and len(encoded) == 1
    # they differ only where they are cut
    same_end = pair("a", "fox " * 60 + "ran", "fox " * 60 + "fell")
    assert encode_pairs([rows[1], same_end], tiny_tokenizer, max_length=40, overlong="truncate")[
        1
    ] == [0]
    with pytest.raises(DataError, match="no pair is left"):
        encode_pairs([same_end], tiny_tokenizer, max_length=40, overlong="truncate")
    with pytest.raises(DataError, match=r"1 of 1 pairs"):
        encode_pairs(rows[:1], tiny_tokenizer, max_length=40, overlong="drop")


def test_pairs_that_part_before_their_last_turn_are_counted():
    begin = [turn("user", "hi"), turn("assistant", "hello")]
    late = {
        "chosen": [*begin, turn("user", "who?"), turn("assistant", "a fox")],
        "rejected": [*begin, turn("user", "who?"), turn("assistant", "no")],
    }
    early = {
        "chosen": [*begin, turn("user", "who?"), turn("assistant", "a fox")],
        "rejected": [turn("user", "hi"), turn("assistant", "go"), *late["rejected"][2:]],
    }
    counts = PreferenceCounts()
    found = to_pairs([late, early], counts=counts)
    assert counts.parted_early == 1 and len(found) == 2
    # the prompt ends where they part, so the user's turn is a part of both answers, where answers
    # begin with the assistant's turn too
    beside = {side: early[side][1:] for side in early} | {"prompt": "hi"}
    late_beside = {side: late[side][1:] for side in late} | {"prompt": "hi"}
    assert to_pairs([late_beside, beside]) == found
    assert [each["role"] for each in found[1]["chosen"]] == ["assistant", "user", "assistant"]
    assert [each["role"] for each in found[0]["chosen"]] == ["assistant"]
