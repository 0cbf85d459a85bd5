"""Score generated text against references: BLEU, chrF and ROUGE, nothing fetched.

The numbers are those of sacrebleu (Post 2018, arXiv:1804.08771) and of rouge_score, Google's
reimplementation of ROUGE (Lin 2004). Each is a local `evaluate.Metric`, to be used alone or through
`evaluate.combine`.

Text without spaces between its words is split into characters: BLEU with sacrebleu's `zh` where it
is Chinese, `char` where it is Japanese, Thai and so on. rouge_score's own tokenizer keeps nothing
but a-z and 0-9, so that Hindi scores 0 against itself, and Japanese texts that share a number 1.
Where a letter or digit is of no such kind, ROUGE has a tokenizer of ours.
"""

import importlib
import importlib.metadata
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import datasets
import evaluate
import numpy

from hfstack.data.cleaning.filters import UNSPACED_SCRIPTS
from hfstack.errors import DataError, MissingExtraError
from hfstack.intervals import bootstrap_intervals

Writing = Literal["spaced", "chinese", "unspaced"]

ROUGE_KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_CHINESE = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")
_UNSPACED_LETTER = re.compile(f"[{UNSPACED_SCRIPTS}]")
_BLEU_TOKENIZER: dict[Writing, str] = {
    "spaced": "13a",
    "chinese": "zh",
    "unspaced": "char",
}
_TEXT_LIST = datasets.Sequence(datasets.Value("string"))


class _OverlapMetric(evaluate.Metric):
    """Base of the metrics of predictions and references.

    A prediction has one reference, or a list of them.
    """

    def _info(self) -> evaluate.MetricInfo:
        one = {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
        many = {"predictions": datasets.Value("string"), "references": _TEXT_LIST}
        return evaluate.MetricInfo(
            description=(type(self).__doc__ or "").splitlines()[0],
            citation="",
            inputs_description=(
                "Generated texts, and for each the reference text or the list of them."
            ),
            features=[datasets.Features(many), datasets.Features(one)],
        )


class Bleu(_OverlapMetric):
    """Corpus BLEU of sacrebleu, 0 to 100, as `bleu`."""

    def __init__(self, writing: Writing = "spaced", **settings: Any) -> None:
        self.writing: Writing = writing
        super().__init__(**settings)

    def _compute(
        self, *, predictions: Any = None, references: Any = None, **_: Any
    ) -> dict[str, float]:
        tokenize = _BLEU_TOKENIZER[self.writing]
        score = _module("sacrebleu").corpus_bleu(
            predictions, _by_position(references), tokenize=tokenize
        )
        return {"bleu": float(score.score)}


class Chrf(_OverlapMetric):
    """Corpus chrF of sacrebleu, 0 to 100, as `chrf`.

    An F-score of character 6-grams (Popović 2015).
    """

    def _compute(
        self, *, predictions: Any = None, references: Any = None, **_: Any
    ) -> dict[str, float]:
        return {
            "chrf": float(
                _module("sacrebleu").corpus_chrf(predictions, _by_position(references)).score
            )
        }


class Rouge(_OverlapMetric):
    """Mean ROUGE F-scores, 0 to 1, as `rouge1`, `rouge2`, `rougeL` and `rougeLsum`.

    The best reference counts.
    """

    def _compute(
        self, *, predictions: Any = None, references: Any = None, **_: Any
    ) -> dict[str, float]:
        # a plain sum: numpy's pairwise one ends in other digits
        return {
            kind: sum(scores.tolist()) / len(scores)
            for kind, scores in rouge_of_texts(predictions, references).items()
        }


class _WordsOfAnyScript:
    """A rouge_score tokenizer of words, and of characters of unspaced scripts."""

    def tokenize(self, text: str) -> list[str]:
        """Split a text, with each letter's own marks, into lower case."""
        return _word_pattern().findall(unicodedata.normalize("NFC", text).lower())


@lru_cache(maxsize=1)
def _word_pattern() -> re.Pattern[str]:
    """Return what finds words, and characters of unspaced scripts, with their marks.

    Vowel signs (as in Hindi and Thai) are marks to Unicode, which `\\w` leaves out, and the joiners
    of Persian and of Indic scripts stand inside of words.
    """
    marks = "".join(
        character
        for character in map(chr, range(0x300, 0x1F000))
        if unicodedata.category(character) in ("Mn", "Mc")
    )
    letter = f"[^\\W_{UNSPACED_SCRIPTS}]"
    word = f"{letter}(?:{letter}|[{marks}\u200c\u200d])*"
    return re.compile(f"[{UNSPACED_SCRIPTS}][{marks}]*|{word}")


def _beyond_ascii(predictions: Sequence[str], references: Sequence[str | Sequence[str]]) -> bool:
    """Return whether a letter or digit is other than a-z and 0-9."""
    texts = [
        *predictions,
        *(text for reference in references for text in _as_references(reference)),
    ]
    return any(
        not text.isascii() and any(c.isalnum() and not c.isascii() for c in text) for text in texts
    )


def text_overlap(
    predictions: Sequence[str], references: Sequence[str | Sequence[str]]
) -> dict[str, float]:
    """Return bleu, chrf and the ROUGE scores of generated texts.

    The references' writing chooses how they are split.

    Raises:
        DataError: there is nothing to compare, or not as many of one as of the other.
        MissingExtraError: sacrebleu or rouge_score is not installed.
    """
    if not predictions or len(predictions) != len(references):
        raise DataError(
            f"text overlap compares {len(predictions)} texts with {len(references)} references"
        )
    writing = writing_of([text for reference in references for text in _as_references(reference)])
    metric = evaluate.combine([Bleu(writing), Chrf(), Rouge()])
    columns: dict[str, Any] = {"predictions": list(predictions), "references": list(references)}
    return {name: float(value) for name, value in (metric.compute(**columns) or {}).items()}


def signatures(
    predictions: Sequence[str], references: Sequence[str | Sequence[str]]
) -> dict[str, str]:
    """Return how `text_overlap` computes each score of these texts.

    What BLEU and chrF need to be comparable.

    Those of bleu and chrf are sacrebleu's own signatures.

    Raises:
        MissingExtraError: sacrebleu or rouge_score is not installed.
    """
    sacrebleu = _module("sacrebleu")
    writing = writing_of([text for reference in references for text in _as_references(reference)])
    streams = _by_position(references)
    found: dict[str, str] = {}

    for name, metric in {
        "bleu": sacrebleu.BLEU(tokenize=_BLEU_TOKENIZER[writing]),
        "chrf": sacrebleu.CHRF(),
    }.items():
        # the signature says how many references there are
        metric.corpus_score(list(predictions), streams)
        found[name] = str(metric.get_signature())

    _module("rouge_score.rouge_scorer")
    split = "words of a-z and 0-9"
    if _beyond_ascii(predictions, references):
        split = "hfstack words of any script, characters where none are between spaces"
    version = importlib.metadata.version("rouge_score")
    return found | dict.fromkeys(
        ROUGE_KINDS, f"rouge_score:{version}|F-score|{split}|no stemming|best reference"
    )


def bleu_interval(
    predictions: Sequence[str], references: Sequence[str | Sequence[str]], *, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of corpus BLEU over texts.

    Koehn 2004, W04-3250.

    Raises:
        MissingExtraError: sacrebleu is not installed.
    """
    counts = count_for_bleu(predictions, references)
    found = bootstrap_intervals(
        lambda rows: {"bleu": counts.score(rows)}, len(counts.table), seed=seed
    )
    return found["bleu"]


@dataclass(frozen=True)
class BleuCounts:
    """What BLEU counts of each text, so that it can be computed of any of them."""

    table: numpy.ndarray[Any, Any]
    """(texts, 10): right and all n-grams of 1 to 4 words, its length and its reference's."""
    metric: Any

    def score(self, rows: numpy.ndarray[Any, Any]) -> float:
        """Return the corpus BLEU of some texts, some twice, some never."""
        *grams, own, wanted = self.table[rows].sum(0).tolist()
        found = self.metric.compute_bleu(grams[:4], grams[4:], own, wanted, smooth_method="exp")
        return float(found.score)


def count_for_bleu(
    predictions: Sequence[str], references: Sequence[str | Sequence[str]]
) -> BleuCounts:
    """Return what BLEU counts of each text.

    Raises:
        MissingExtraError: sacrebleu is not installed.
    """
    writing = writing_of([text for reference in references for text in _as_references(reference)])
    metric = _module("sacrebleu").BLEU(tokenize=_BLEU_TOKENIZER[writing], effective_order=True)
    counts: list[list[int]] = []
    for text, reference in zip(predictions, references, strict=True):
        score = metric.sentence_score(text, _as_references(reference))
        counts.append([*score.counts, *score.totals, score.sys_len, score.ref_len])
    return BleuCounts(numpy.array(counts), metric)


def rouge_of_texts(
    predictions: Sequence[str], references: Sequence[str | Sequence[str]]
) -> dict[str, numpy.ndarray[Any, Any]]:
    """Return the ROUGE F-scores of each text, an array for each kind."""
    beyond = _beyond_ascii(predictions, references)
    tokenizer = _WordsOfAnyScript() if beyond else None
    scorer = _module("rouge_score.rouge_scorer").RougeScorer(ROUGE_KINDS, tokenizer=tokenizer)
    scores = [
        scorer.score_multi(_as_references(reference), prediction)
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    return {kind: numpy.array([score[kind].fmeasure for score in scores]) for kind in ROUGE_KINDS}


def writing_of(texts: Sequence[str]) -> Writing:
    """Say whether texts mostly have no spaces between words, and are Chinese."""
    letters = [character for text in texts for character in text if character.isalpha()]
    unspaced = [character for character in letters if _UNSPACED_LETTER.match(character)]
    if len(unspaced) <= 0.3 * max(len(letters), 1):
        return "spaced"
    chinese = sum(bool(_CHINESE.match(character)) for character in unspaced)
    return "chinese" if chinese > 0.9 * len(unspaced) else "unspaced"


def _as_references(reference: str | Sequence[str]) -> list[str]:
    return [reference] if isinstance(reference, str) else list(reference)


def _by_position(references: Sequence[str | Sequence[str]]) -> list[list[str | None]]:
    """Turn references per text into sacrebleu's streams: all first ones, all second."""
    listed = [_as_references(reference) for reference in references]
    width = max(map(len, listed))
    return [
        [texts[index] if index < len(texts) else None for texts in listed] for index in range(width)
    ]


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise MissingExtraError(name.split(".")[0], "metrics") from None
