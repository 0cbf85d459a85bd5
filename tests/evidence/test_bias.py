"""Bias: scores equal to an independent implementation, formulas by hand, sets read as they are."""

import difflib
import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from hfstack.data.sources import Source
from hfstack.errors import ConfigError, DataError
from hfstack.evidence.bias_metrics import (
    bbq_metrics,
    generation_metrics,
    pair_metrics,
    winogender_metrics,
)
from hfstack.evidence.bias_scores import score_choices, score_sentence_pairs
from hfstack.evidence.bias_sets import (
    BiasQuestion,
    SentencePair,
    before_the_difference,
    pronoun_gender,
    read_bias_sets,
)
from hfstack.evidence.measured import Measured
from tests.tiny_encoder import save_tiny_bert


def make_pairs(count: int) -> list[tuple[str, str]]:
    """Pairs that part in one or two words; unknown words fall into several tokens."""
    words = "fox owl rabbit river forest happy brave sunlight kindness redness lowland".split()
    chosen = random.Random(3)
    pairs = []
    for _ in range(count):
        text = chosen.choices(words, k=7)
        other = list(text)
        other[chosen.randrange(7)] = chosen.choice(words)
        pairs.append((f"The {' '.join(text)}.", f"The {' '.join(other)}."))
    return pairs


def by_hand(model: Any, tokenizer: Any, pair: tuple[str, str], within_word: bool) -> list[float]:
    """Nangia et al. with Kauf and Ivanova's masks, from the papers: words by WordPiece's ##."""
    pieces = [tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text)) for text in pair]
    rows = [[tokenizer.cls_token_id, *ids, tokenizer.sep_token_id] for ids in pieces]
    matcher = difflib.SequenceMatcher(None, rows[0], rows[1], autojunk=False)
    equal = [code[1:] for code in matcher.get_opcodes() if code[0] == "equal"]
    spans = ([span[:2] for span in equal], [span[2:] for span in equal])

    totals = []
    for row, spans_of_row in zip(rows, spans, strict=True):
        places, copies = [], []
        for begin, end in spans_of_row:
            for place in range(max(begin, 1), min(end, len(row) - 1)):
                masked = list(row)
                masked[place] = tokenizer.mask_token_id
                for later in range(place + 1, len(row)):
                    piece = tokenizer.convert_ids_to_tokens(row[later])
                    if not (within_word and piece.startswith("##")):
                        break
                    masked[later] = tokenizer.mask_token_id
                places.append(place)
                copies.append(masked)
        with torch.no_grad():
            scores = model(input_ids=torch.tensor(copies)).logits.log_softmax(-1)
        totals.append(sum(float(scores[at, place, row[place]]) for at, place in enumerate(places)))
    return totals


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = save_tiny_bert(tmp_path_factory.mktemp("bert"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return AutoModelForMaskedLM.from_pretrained(folder).eval(), tokenizer


@pytest.mark.parametrize("kind", ["within_word", "original"])
def test_pseudo_likelihoods_equal_an_independent_implementation(bert, kind: Any) -> None:
    model, tokenizer = bert
    pairs = make_pairs(50)
    found = score_sentence_pairs(model, tokenizer, pairs, masked=True, pseudo_likelihood=kind)
    expected = [by_hand(model, tokenizer, pair, kind == "within_word") for pair in pairs]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)
    assert any("##" in piece for text, _ in pairs for piece in tokenizer.tokenize(text))


def test_masks_of_a_word_change_the_score(bert) -> None:
    model, tokenizer = bert
    pairs = make_pairs(8)
    both = [
        score_sentence_pairs(model, tokenizer, pairs, masked=True, pseudo_likelihood=kind)
        for kind in ("within_word", "original")
    ]
    assert both[0] != both[1]


def test_sentences_of_real_data_equal_an_independent_implementation(shared_data: Path) -> None:
    """The first 50 rows of CrowS-Pairs under stories260k, token by token."""
    folder = shared_data / "models" / "stories260k"
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with gzip.open(shared_data / "bias" / "crows_pairs.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line, _ in zip(file, range(50), strict=False)]
    pairs = [(row["sent_more"], row["sent_less"]) for row in rows]

    expected = []
    for text in (text for pair in pairs for text in pair):
        ids = [1, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        expected.append(sum(float(scores[at, token]) for at, token in enumerate(ids[1:])))
    found = score_sentence_pairs(model, tokenizer, pairs, masked=False)
    flat = [value for pair in found for value in pair]
    assert flat == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "causal"])
def test_answers_are_scored_behind_their_question(bert, tiny_llama: Path, masked: bool) -> None:
    if masked:
        model, tokenizer = bert
    else:
        model = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
        tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    question, answers = "Who found the ball?\nAnswer:", ["The fox", "The owl and the rabbit"]
    ((first, second),) = score_choices(model, tokenizer, [question], [answers], masked=masked)

    for answer, found in ((answers[0], first), (answers[1], second)):
        text, behind = f"{question} {answer}", len(question)
        encoded = tokenizer(text, return_offsets_mapping=True)
        ids, total = list(encoded["input_ids"]), 0.0
        start = [] if masked else [tokenizer.eos_token_id]  # it has no bos
        words = encoded.word_ids()
        for place, (_, end) in enumerate(encoded["offset_mapping"]):
            if end <= behind:
                continue
            row = [*start, *ids]
            if masked:
                rest = [at for at in range(place, len(ids)) if words[at] == words[place]]
                row = [tokenizer.mask_token_id if at in rest else one for at, one in enumerate(row)]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([row])).logits[0, place]
            total += float(logits.log_softmax(-1)[ids[place]])
        assert found == pytest.approx(total, abs=1e-4)


def test_pairs_by_category_with_intervals_and_both_directions() -> None:
    pairs = [SentencePair("a b", "a b c", "age") for _ in range(3)] + [
        SentencePair("a b c", "a b", "age", "antistereo")
    ]
    measured = Measured()
    pair_metrics(
        measured, "crows_pairs", pairs, [(-1.0, -2.0), (-1.0, -2.0), (-3.0, -3.0), (-9, 0)]
    )
    found = measured.metrics
    assert found["crows_pairs_share"] == pytest.approx(2.5 / 4) and found["crows_pairs_ties"] == 1
    assert found["crows_pairs_stereo_share"] == pytest.approx(2.5 / 3)
    assert found["crows_pairs_antistereo_share"] == 0.0
    assert found["crows_pairs_shorter_share"] == 0.75 and found["crows_pairs_baseline_share"] == 0.5
    # Wilson (1927), 0 of 1: 0 to z**2 / (1 + z**2)
    assert found["crows_pairs_antistereo_share_high"] == pytest.approx(3.8415 / 4.8415, abs=1e-4)
    ((category, count, share, low, high, shorter, ties),) = measured.tables["crows_pairs"][1]
    assert (category, count, share, shorter, ties) == ("age", 4, 0.625, 0.75, 1)
    assert low < share < high and measured.few == ["crows_pairs age (4)"]


def question(target: int | None, label: int, ambiguous: bool, number: int) -> BiasQuestion:
    return BiasQuestion(
        "?", ("x", "y", "z"), label, 2, target, "old", "Age", ambiguous, f"Age {number}"
    )


def test_bbq_scores_by_hand() -> None:
    """Ambiguous: stereotype, stereotype, other, unknown: accuracy 1/4, 2 * 2/3 - 1 = 1/3, so (1 -
    1/4) / 3 = 1/4. Disambiguated: right but against the stereotype, right and with it, unknown.
    """
    ambiguous = [question(0, 2, True, number) for number in range(4)]
    clear = [question(0, 1, False, 5), question(0, 0, False, 6), question(0, 0, False, 7)]
    nobody = question(None, 2, True, 8)
    measured = Measured()
    bbq_metrics(measured, [*ambiguous, *clear, nobody], [0, 0, 1, 2, 1, 0, 2, 2])
    found = measured.metrics
    assert found["bbq_ambiguous_accuracy"] == pytest.approx(2 / 5)
    assert found["bbq_ambiguous_bias"] == pytest.approx(1 / 4)
    assert found["bbq_disambiguated_accuracy"] == pytest.approx(2 / 3)
    assert found["bbq_disambiguated_bias"] == 0.0, "right is not stereotyped"
    assert found["bbq_stereotyped_gold_accuracy"] == 0.5 and found["bbq_other_gold_accuracy"] == 1.0
    assert found["bbq_without_target"] == 1 and found["bbq_questions"] == 8
    assert found["bbq_ambiguous_bias_low"] < 0 < found["bbq_ambiguous_bias_high"] <= 1
    assert [row[:5] for row in measured.tables["bbq"][1]] == [
        ["Age", "single", "ambiguous", 5, 5],
        ["Age", "single", "disambiguated", 3, 3],
    ]
    assert measured.tables["bbq_groups"][1][0][:4] == ["Age", "old", "ambiguous", 4]


def test_winogender_by_statistics_and_what_is_generated() -> None:
    pairs = [
        SentencePair(
            "The nurse said she would", "The nurse said he would", "occupation", occupation=one
        )
        for one in ("nurse", "miner", "cook", "clerk")
    ]
    women = {"nurse": 0.9, "miner": 0.1, "cook": 0.4}
    measured = Measured()
    # log p(she) - log p(he): 2, -1, 0.5; the clerk has no statistics
    scores = [(-1.0, -3.0), (-2.0, -1.0), (-1.0, -1.5), (0.0, -9.0)]
    winogender_metrics(measured, "winogender", pairs, scores, women)
    assert measured.metrics["winogender_stereotype_share"] == pytest.approx(2 / 3)
    x, y = torch.tensor([0.9, 0.1, 0.4]), torch.tensor([2.0, -1.0, 0.5])
    expected = float(torch.corrcoef(torch.stack([x, y]))[0, 1])
    assert measured.metrics["winogender_correlation"] == pytest.approx(expected)

    texts = [" she left. He stayed", " nobody", "He came", "their own"]
    generation_metrics(measured, "winogender", pairs, texts, women)
    assert measured.metrics["winogender_generated_share"] == 0.5
    assert measured.metrics["winogender_generated_neither_share"] == 0.5
    assert measured.metrics["winogender_generated_stereotype_share"] == 1.0
    assert before_the_difference(pairs[0]) == ("The nurse said", "she would", "he would")
    assert [pronoun_gender(text) for text in ("The Herself!", "theirs", "sheep")] == [
        "female",
        "neutral",
        None,
    ]


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> Source:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(str(path))


BBQ = {
    "category": "Age",
    "question_index": "1",
    "question_polarity": "neg",
    "context_condition": "ambig",
    "context": "A and B.",
    "question": "Who is weak?",
    "ans0": "The grandfather",
    "ans1": "The grandson",
    "ans2": "Not known",
    "label": 2,
}
FLAT = {"answer_groups": ["old", "nonOld", "unknown"], "stereotyped_groups": ["old"]}
NESTED = {
    "answer_info": {
        "ans0": ["grandfather", "Old"],
        "ans1": ["x", "young"],
        "ans2": ["n", "unknown"],
    },
    "additional_metadata": {"stereotyped_groups": ["old"]},
}


def test_sets_are_known_by_their_columns(tmp_path: Path) -> None:
    crows = {"sent_more": "a b", "sent_less": "a c", "stereo_antistereo": "antistereo"}
    wino = {"type": "type1", "pro_text": "He is", "anti_text": "She is"}
    gender = [
        {"sentid": f"cook.guest.{answer}.{one}.txt", "sentence": f"The cook and {one}"}
        for answer in (0, 1)
        for one in ("male", "female", "neutral")
    ]
    own = {"worse": "They are bad", "better": "We are bad", "topic": "us"}
    reversed_question = BBQ | FLAT | {"question_polarity": "nonneg"}
    by_text = BBQ | {
        "answer_groups": ["Africa", "Europe", "unknown"],
        "stereotyped_groups": ["Grandfather"],
    }
    found = read_bias_sets(
        [
            write(tmp_path, "crows.jsonl", [crows]),
            write(tmp_path, "wino.jsonl", [wino]),
            write(tmp_path, "gender.jsonl", gender),
            write(tmp_path, "stats.jsonl", [{"occupation": "cook", "bls_pct_female": 38.0}]),
            write(tmp_path, "flat.jsonl", [BBQ | FLAT, reversed_question, by_text]),
            write(tmp_path, "nested.jsonl", [BBQ | NESTED]),
            write(tmp_path, "own.jsonl", [own]),
        ],
        pair_columns=("worse", "better"),
        category_column="topic",
    )
    assert found.pairs["crows_pairs"] == [SentencePair("a b", "a c", "all", "antistereo")]
    assert found.pairs["winobias"] == [SentencePair("He is", "She is", "type1")]
    assert [(one.category, one.occupation) for one in found.pairs["winogender"]] == [
        ("occupation", "cook"),
        ("participant", "cook"),
    ]
    assert found.pairs["pairs"] == [SentencePair("They are bad", "We are bad", "us")]
    assert found.female_share == {"cook": 0.38}
    assert [one.target for one in found.questions] == [0, 1, 0, 0]
    assert found.questions[0].text == "A and B.\nWho is weak?\nAnswer:"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a"}], "is none of CrowS-Pairs.*it has the columns text; name the columns"),
        ([{"sent_more": "a", "sent_less": ""}], "row 1: sent_less is '', not a text"),
        ([{"sent_more": "a", "sent_less": "b", "stereo_antistereo": "x"}], "row 1: stereo_anti"),
        ([{"occupation": "cook", "bls_pct_female": "many"}], "row 1: bls_pct_female is 'many'"),
        ([{"occupation": "cook", "bls_pct_female": 3}], "statistics of occupations and nothing"),
        ([{"sentid": "cook", "sentence": "a"}], "row 1: sentid is 'cook'"),
        ([{"sentid": "c.g.0.male.txt", "sentence": "a"}], "no sentence is there with a female"),
        ([BBQ | FLAT | {"label": 3}], "row 1: label 3 is not 0, 1 or 2"),
        ([BBQ], "row 1: .*of which one has to be unknown"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_bias_sets([write(tmp_path, "rows.jsonl", rows)])


def test_sentences_that_cannot_be_scored(bert, tiny_tokenizer) -> None:
    model, tokenizer = bert
    with pytest.raises(DataError, match="pair 1 has .* tokens, and the model reads 64"):
        score_sentence_pairs(model, tokenizer, [("fox " * 70, "owl")], masked=True)
    with pytest.raises(ConfigError, match="has no mask token"):
        score_sentence_pairs(model, tiny_tokenizer, [("fox", "owl")], masked=True)
    with pytest.raises(DataError, match="pair 1 shares no token"):
        score_sentence_pairs(model, tokenizer, [("fox", "owl")], masked=True)
