"""Answers from logits by hand, windows of long texts, the official scripts' rules, and naive
answers.
"""

import numpy as np
import pytest

from hfstack.tasks.question_answering.data import Question, QuestionWindow, encode_questions
from hfstack.tasks.question_answering.metrics import (
    answer_metric,
    answer_metrics,
    baseline_answers,
    beside_baselines,
    find_answers,
)
from hfstack.tasks.shared.metrics import CmrcAnswers, SquadAnswers
from tests.tiny_encoder import tiny_bert_tokenizer

CONTEXT = "red fox ran"
OFFSETS = [None, None, None, (0, 3), (4, 7), (8, 11), None]  # [CLS] q [SEP] red fox ran [SEP]
QUESTION = Question("q", "who ran ?", CONTEXT, [("fox", 4)])


def logits(begin: dict[int, float], end: dict[int, float]) -> list[list[float]]:
    # padded beyond the window
    return [[side.get(token, 0.0) for token in range(9)] for side in (begin, end)]


def choose(rows: list, **changes):
    windows = [QuestionWindow(0, [0] * 7, None, OFFSETS, 0, 0) for _ in rows]
    settings = {"max_answer_tokens": 3, "n_best": 3, "no_answer": False} | changes
    return find_answers(
        ([r[0] for r in rows], [r[1] for r in rows]), windows, [QUESTION], **settings
    )[0]


def test_the_best_stretch_lies_in_the_context_and_runs_forward() -> None:
    found = choose([logits({1: 9, 4: 3, 5: 4}, {1: 9, 4: 5, 3: 9})])
    assert [(c.text, c.start, c.score) for c in found[:2]] == [("red", 0, 9.0), ("fox", 4, 8.0)]
    assert found[0].probability == pytest.approx(
        np.exp(9) / sum(np.exp(c.score) for c in found), abs=1e-6
    )
    assert [c.text for c in choose([logits({3: 5}, {5: 5, 3: 1})], n_best=1)] == ["red fox ran"]
    assert [
        c.text for c in choose([logits({3: 5}, {5: 5, 3: 1})], n_best=1, max_answer_tokens=2)
    ] == ["red"]


def test_what_follows_the_two_logits_is_no_logit() -> None:
    begin, end = logits({4: 3}, {4: 3})
    windows = [QuestionWindow(0, [0] * 7, None, OFFSETS, 0, 0)]
    states = np.zeros((1, 9, 16))  # the encoder's, which BART's family returns as well
    settings = {"max_answer_tokens": 3, "n_best": 3, "no_answer": False}
    found = find_answers(([begin], [end], states), windows, [QUESTION], **settings)
    assert found[0][0].text == "fox"


def test_a_window_without_the_answer_does_not_win_by_a_constant() -> None:
    sure_of_nothing = logits({0: 30, 3: 20, 4: 20, 5: 20}, {0: 30, 3: 20, 4: 20, 5: 20})
    found = choose([sure_of_nothing, logits({0: 1, 4: 5}, {0: 1, 4: 5})])
    assert found[0].text == "fox" and found[0].score == 8.0


def test_no_answer_wins_by_the_threshold() -> None:
    rows = [logits({0: 4, 4: 3}, {0: 4, 4: 3})]
    assert (choose(rows, no_answer=True)[0].text, choose(rows)[0].text) == ("", "fox")
    found = choose(rows, no_answer=True, threshold=2.5)
    assert found[0].text == "fox" and found[1].text == "" and found[1].start == -1


def test_long_texts_are_read_whole_and_the_answer_is_where_it_says() -> None:
    tokenizer = tiny_bert_tokenizer()
    context = "the owl was kind and " * 12 + "the fox was happy ."
    question = Question("q", "who was happy ?", context, [("fox", context.index("fox"))])
    windows = encode_questions([question], tokenizer, max_length=32, stride=8, name="test")
    read = {offset for window in windows for offset in window.offsets if offset}
    assert len(windows) > 2 and len(read) == len(
        tokenizer(context, add_special_tokens=False)["input_ids"]
    )
    holding = [window for window in windows if window.start]
    assert holding and all(len(window.input_ids) <= 32 for window in windows)
    for window in holding:
        assert context[window.offsets[window.start][0] : window.offsets[window.end][1]] == "fox"
        assert tokenizer.decode(window.input_ids[window.start : window.end + 1]) == "fox"
    asked = Question("q", "the fox " * 40, context, [])
    assert all(
        len(w.input_ids) <= 32
        for w in encode_questions([asked], tokenizer, max_length=32, stride=8, name="t")
    )


def test_rules_follow_the_language() -> None:
    chinese = Question("z", "谁跑了？", "狐狸跑了。猫头鹰很好。", [("狐狸", 0)])
    assert isinstance(answer_metric("auto", [QUESTION]), SquadAnswers)
    assert isinstance(answer_metric("auto", [chinese]), CmrcAnswers)
    assert isinstance(answer_metric("cmrc", [QUESTION]), CmrcAnswers)
    assert answer_metrics(CmrcAnswers(), [chinese], ["狐"])["answer_f1"] == pytest.approx(
        100 * 2 / 3
    )
    assert answer_metrics(SquadAnswers(), [QUESTION], ["The fox!"]) == {
        "exact_match": 100.0,
        "answer_f1": 100.0,
    }


def test_naive_answers_and_intervals() -> None:
    context = "The owl was kind. The fox ran to the river. They went home."
    question = Question("q", "Where did the fox run to?", context, [("the river", 30)])
    naive = baseline_answers([question])
    assert naive == {
        "first_sentence": ["The owl was kind."],
        "likest_sentence": ["The fox ran to the river."],
    }
    chinese = baseline_answers([Question("z", "谁跑了？", "猫头鹰很好。狐狸跑了。", [])])
    assert chinese["likest_sentence"] == ["狐狸跑了。"]
    found = beside_baselines(SquadAnswers(), [question, QUESTION], ["river", "red"])
    assert found["baseline_likest_sentence_answer_f1"] > found["baseline_first_sentence_answer_f1"]
    assert (
        found["eval_questions"] == 2 and found["eval_answer_f1_low"] < found["eval_answer_f1_high"]
    )
