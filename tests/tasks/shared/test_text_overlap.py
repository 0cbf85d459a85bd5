"""BLEU, chrF and ROUGE against the libraries' own numbers, and what becomes of Chinese."""

import sys

import evaluate
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from hfstack.errors import DataError, MissingExtraError
from hfstack.tasks.shared.text_overlap import (
    Bleu,
    Chrf,
    Rouge,
    bleu_interval,
    signatures,
    text_overlap,
    writing_of,
)

PREDICTIONS = [
    "The quick brown fox jumps over the lazy dog.",
    "A cat sat there",
    "nothing in common",
]
REFERENCES = [
    "The fast brown fox jumped over the lazy dog.",
    "A cat sat on the mat.",
    "wholly different words",
]
CHINESE = ["快速的棕色狐狸跳过了懒狗。"]
CHINESE_REFERENCES = ["敏捷的棕色狐狸跳过了那只懒狗。"]


def test_the_numbers_are_upstreams() -> None:
    found = text_overlap(PREDICTIONS, REFERENCES)
    assert found["bleu"] == pytest.approx(
        sacrebleu.corpus_bleu(PREDICTIONS, [REFERENCES]).score, abs=1e-9
    )
    assert found["chrf"] == pytest.approx(
        sacrebleu.corpus_chrf(PREDICTIONS, [REFERENCES]).score, abs=1e-9
    )
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"])
    scores = [
        scorer.score(reference, text)
        for text, reference in zip(PREDICTIONS, REFERENCES, strict=True)
    ]
    for kind in scores[0]:
        assert found[kind] == pytest.approx(
            sum(score[kind].fmeasure for score in scores) / 3, abs=1e-9
        )
    assert 0 < found["rouge1"] < 1 and 0 < found["bleu"] < 100 and 0 < found["chrf"] < 100


def test_a_hand_worked_rouge() -> None:
    found = Rouge().compute(predictions=["the cat sat"], references=["the cat ran away"])
    assert found is not None
    assert found["rouge1"] == pytest.approx(4 / 7)  # precision 2/3, recall 2/4
    assert found["rouge2"] == pytest.approx(2 / 5)  # precision 1/2, recall 1/3


def test_several_references() -> None:
    references = [
        ["The fox", "The quick brown fox jumps over the lazy dog."],
        ["A cat sat on the mat."],
        ["nothing"],
    ]
    streams = [["The fox", "A cat sat on the mat.", "nothing"], [references[0][1], None, None]]
    found = text_overlap(PREDICTIONS, references)
    assert found["bleu"] == pytest.approx(
        sacrebleu.corpus_bleu(PREDICTIONS, streams).score, abs=1e-9
    )
    assert found["chrf"] == pytest.approx(
        sacrebleu.corpus_chrf(PREDICTIONS, streams).score, abs=1e-9
    )
    best = Rouge().compute(predictions=PREDICTIONS[:1], references=references[:1])
    assert best is not None and best["rougeL"] == 1


def test_chinese_is_split_into_characters() -> None:
    assert (
        writing_of(CHINESE) == "chinese"
        and writing_of(PREDICTIONS) == "spaced"
        and writing_of([]) == "spaced"
    )
    found = text_overlap(CHINESE, CHINESE_REFERENCES)
    theirs = sacrebleu.corpus_bleu(CHINESE, [CHINESE_REFERENCES], tokenize="zh").score
    assert found["bleu"] == pytest.approx(theirs, abs=1e-9) and theirs > 30
    # 12 and 14 characters, 10 of them shared; rouge_score's own tokenizer would keep none
    assert found["rouge1"] == pytest.approx(2 * 10 / (12 + 14))
    alone = Rouge().compute(predictions=CHINESE, references=CHINESE_REFERENCES)
    assert alone is not None and alone["rouge1"] == found["rouge1"]


# of one language each: a text, and another that differs by a vowel sign, an accent or a word
OTHER_SCRIPTS = {
    "Hindi": ("किताब मेज़ पर है", "कीताब मेज़ पर हैं"),
    "Russian": ("кошка спит на столе", "собака спит на столе"),
    "Arabic": ("القطة نائمة على الطاولة", "القطة جالسة على الطاولة"),
    "Persian": ("کتاب‌ها روی میز", "کتابها روی میز"),
    "Thai": ("แมวนอนบนโต๊ะ", "แมวนั่งบนโต๊ะ"),
    "Japanese": ("猫は3時に寝ます", "犬は3時に起きます"),
    "Korean": ("고양이가 책상 위에서 잔다", "강아지가 책상 위에서 잔다"),
    "Khmer": ("ឆ្មាដេកលើតុ", "ឆ្មាអង្គុយលើតុ"),
    "Tibetan": ("ཞི་མི་ཉལ་བ", "ཞི་མེ་ཉལ་བ"),
    "Greek": ("η γάτα κοιμάται", "η γατα κοιμάται"),
    "German": ("Größe und Maß", "Gräße und Maß"),
}


@pytest.mark.parametrize("language", OTHER_SCRIPTS)
def test_a_text_is_equal_to_itself_and_to_no_other_in_any_script(language: str) -> None:
    text, other = OTHER_SCRIPTS[language]
    same = text_overlap([text], [text])
    assert [same[kind] for kind in ("rouge1", "rougeL", "rougeLsum")] == [1, 1, 1]
    for one, two in ((text, other), (other, text)):
        found = text_overlap([one], [two])
        assert 0 < found["rouge1"] < 1 and 0 < found["rougeL"] < 1
    assert "words of any script" in signatures([text], [text])["rouge1"]


def test_rouge_of_words_and_characters_by_hand() -> None:
    found = text_overlap(["кошка спит тут"], ["кошка спит на столе"])
    assert found["rouge1"] == pytest.approx(2 * 2 / (3 + 4))
    found = text_overlap(["แมวดี"], ["แมว"])
    assert found["rouge1"] == pytest.approx(2 * 3 / (4 + 3))
    found = text_overlap(["ที่"], ["ที"])  # one letter with its two marks, or one
    assert found["rouge1"] == 0
    # a decomposed accent is the same letter
    assert text_overlap(["cafe\u0301"], ["caf\u00e9"])["rouge1"] == 1
    assert text_overlap(["cafe"], ["caf\u00e9"])["rouge1"] == 0


def test_bleu_of_scripts_without_spaces_counts_characters() -> None:
    japanese, thai = OTHER_SCRIPTS["Japanese"], OTHER_SCRIPTS["Thai"]
    assert writing_of(japanese) == writing_of(thai) == "unspaced"
    for one, two in (japanese, thai):
        found = text_overlap([one], [two])["bleu"]
        theirs = sacrebleu.corpus_bleu([one], [[two]], tokenize="char").score
        assert found == pytest.approx(theirs, abs=1e-9) and 0 < found < 100
        assert text_overlap([one], [one])["bleu"] == pytest.approx(100)
    assert "tok:char" in signatures([thai[0]], [thai[1]])["bleu"]


def test_signatures_are_sacrebleus() -> None:
    metric = sacrebleu.BLEU()
    metric.corpus_score(PREDICTIONS, [REFERENCES])
    found = signatures(PREDICTIONS, REFERENCES)
    assert (
        found["bleu"] == str(metric.get_signature())
        and "nrefs:1|" in found["bleu"]
        and "tok:13a" in found["bleu"]
    )
    assert "nc:6|nw:0" in found["chrf"] and found["rougeL"].startswith("rouge_score:")
    assert "tok:zh" in signatures(CHINESE, CHINESE_REFERENCES)["bleu"]
    assert "nrefs:var" in signatures(PREDICTIONS, [["a", "b"], ["c"], ["d"]])["bleu"]


def test_the_interval_of_bleu_is_about_the_bleu_of_the_whole() -> None:
    texts, references = (
        PREDICTIONS * 20,
        [[reference, "A cat sat"] for reference in REFERENCES * 20],
    )
    low, high = bleu_interval(texts, references)
    whole = sacrebleu.corpus_bleu(
        texts, [list(stream) for stream in zip(*references, strict=True)]
    ).score
    assert low < whole < high and high - low < 30
    same = bleu_interval(PREDICTIONS[:1] * 5, REFERENCES[:1] * 5)  # every draw is the whole
    assert same == pytest.approx(
        [sacrebleu.corpus_bleu(PREDICTIONS[:1] * 5, [REFERENCES[:1] * 5]).score] * 2, abs=1e-9
    )


def test_metrics_combine() -> None:
    found = evaluate.combine([Bleu(), Chrf()]).compute(
        predictions=PREDICTIONS, references=REFERENCES
    )
    assert found is not None and set(found) == {"bleu", "chrf"}


def test_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="compares 1 texts with 2 references"):
        text_overlap(["a"], ["a", "b"])
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(
        MissingExtraError,
        match=r"sacrebleu is not installed; install it with: pip install 'hfstack\[metrics\]'",
    ):
        text_overlap(["a"], ["b"])
