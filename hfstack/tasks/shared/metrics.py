"""Score classifiers, taggers and answers with local `evaluate.Metric` classes.

Nothing is fetched.

    metric = evaluate.combine([Accuracy(), F1("macro"), Matthews()])
    metric.compute(predictions=[0, 1], references=[0, 0])

`evaluate.load` gets a script from the Hub; these have the numbers inside, from scikit-learn, SciPy
and seqeval, and are taken by `evaluate.combine` and `evaluate.evaluator` all the same. Keys differ
between metrics, so that combined ones do not hide each other. The metrics of generated text (BLEU,
chrF, ROUGE) are in `hfstack.tasks.shared.text_overlap`.
"""

import importlib
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any, Literal

import datasets
import evaluate
import numpy

from hfstack.errors import ConfigError, MissingExtraError

Average = Literal["binary", "macro", "micro", "weighted"]
Features = datasets.Features | list[datasets.Features]

_NUMBER = datasets.Value("float64")
_WHOLE = datasets.Value("int64")
_TEXT = datasets.Value("string")
_ONE_LABEL = datasets.Features({"predictions": _WHOLE, "references": _WHOLE})
_SEVERAL_LABELS = datasets.Features(
    {"predictions": datasets.Sequence(_WHOLE), "references": datasets.Sequence(_WHOLE)}
)
_NUMBER_FEATURES = datasets.Features({"predictions": _NUMBER, "references": _NUMBER})
_TAGS = datasets.Features(
    {"predictions": datasets.Sequence(_TEXT), "references": datasets.Sequence(_TEXT)}
)
_GOLD = {
    "id": _TEXT,
    "answers": {"text": datasets.Sequence(_TEXT), "answer_start": datasets.Sequence(_WHOLE)},
}


class _LocalMetric(evaluate.Metric):
    """A metric whose inputs are `features`, or the first of several that fits them."""

    features_taken: Features

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=(type(self).__doc__ or "").splitlines()[0],
            citation="",
            inputs_description="Predictions, and as many references.",
            features=self.features_taken,
        )


class Accuracy(_LocalMetric):
    """Share of right predictions, as `accuracy`.

    With several labels a row all of them must be right.
    """

    features_taken = [_SEVERAL_LABELS, _ONE_LABEL]  # noqa: RUF012  read only

    def _compute(
        self, *, predictions: Any = None, references: Any = None, **_: Any
    ) -> dict[str, float]:
        return {
            "accuracy": float(
                _load_metrics_module("sklearn.metrics").accuracy_score(references, predictions)
            )
        }


class F1(_LocalMetric):
    """F1 of scikit-learn: `f1` (of label 1), `f1_macro`, `f1_micro`, `f1_weighted`.

    A class that is neither predicted nor there counts 0. Labels are those that occur, unless
    `labels` names them.
    """

    features_taken = [_SEVERAL_LABELS, _ONE_LABEL]  # noqa: RUF012  read only

    def __init__(
        self, average: Average = "macro", labels: Sequence[int] | None = None, **settings: Any
    ) -> None:
        self.average = average
        self.labels = labels
        super().__init__(**settings)

    def _compute(
        self, *, predictions: Any = None, references: Any = None, **_: Any
    ) -> dict[str, float]:
        score = _load_metrics_module("sklearn.metrics").f1_score(
            references, predictions, average=self.average, labels=self.labels, zero_division=0
        )
        return {"f1" if self.average == "binary" else f"f1_{self.average}": float(score)}


class Matthews(_LocalMetric):
    """Matthews' correlation of predicted and true labels, -1 to 1, as `matthews`.

    0 where one side never varies.
    """

    features_taken = _ONE_LABEL

    def _compute(
        self, *, predictions: Any = None, references: Any = None, **_: Any
    ) -> dict[str, float]:
        return {
            "matthews": float(
                _load_metrics_module("sklearn.metrics").matthews_corrcoef(references, predictions)
            )
        }


class Pearson(_LocalMetric):
    """Pearson's correlation of SciPy, as `pearson`; 0 where one side never varies."""

    features_taken = _NUMBER_FEATURES

    def _compute(
        self, *, predictions: Any = None, references: Any = None, **_: Any
    ) -> dict[str, float]:
        from scipy.stats import pearsonr  # takes half a second, which few runs need

        varies = min(len(set(predictions)), len(set(references))) > 1
        return {
            "pearson": float(numpy.asarray(pearsonr(references, predictions))[0]) if varies else 0.0
        }


class Spearman(_LocalMetric):
    """Spearman's correlation of ranks of SciPy, as `spearman`.

    0 where one side never varies.
    """

    features_taken = _NUMBER_FEATURES

    def _compute(
        self, *, predictions: Any = None, references: Any = None, **_: Any
    ) -> dict[str, float]:
        from scipy.stats import spearmanr  # takes half a second, which few runs need

        varies = min(len(set(predictions)), len(set(references))) > 1
        return {
            "spearman": float(numpy.asarray(spearmanr(references, predictions))[0])
            if varies
            else 0.0
        }


class EntityF1(_LocalMetric):
    """Precision, recall and F1 of whole entities by seqeval, and accuracy of tags.

    Micro averages.

    Keys are `entity_precision`, `entity_recall`, `entity_f1` and `tag_accuracy`; tags are strings
    such as `B-person`.

    Args:
        scheme: IOB1, IOB2, IOE1, IOE2, IOBES or BILOU, which is then enforced; by default seqeval
            is lenient, as conlleval is: an I- without its B- begins an entity.
    """

    features_taken = _TAGS

    def __init__(self, scheme: str | None = None, **settings: Any) -> None:
        self.scheme = scheme
        super().__init__(**settings)

    def _compute(
        self, *, predictions: Any = None, references: Any = None, **_: Any
    ) -> dict[str, float]:
        scores = _load_metrics_module("seqeval.metrics")
        settings: dict[str, Any] = {"zero_division": 0}

        if self.scheme is not None:
            settings |= {
                "mode": "strict",
                "scheme": getattr(_load_metrics_module("seqeval.scheme"), self.scheme),
            }

        return {
            "entity_precision": float(scores.precision_score(references, predictions, **settings)),
            "entity_recall": float(scores.recall_score(references, predictions, **settings)),
            "entity_f1": float(scores.f1_score(references, predictions, **settings)),
            "tag_accuracy": float(scores.accuracy_score(references, predictions)),
        }


class _AnswerMetric(_LocalMetric):
    """Exact match and F1 of answers in percent; the best reference counts.

    A prediction is `{"id", "prediction_text"}`, a reference `{"id", "answers": {"text",
    "answer_start"}}`; no text means that there is no answer. They are matched by id.

    Args:
        with_probability: predictions also have a `no_answer_probability`, as evaluate.evaluator's;
            it is not used.
    """

    def __init__(self, *, with_probability: bool = False, **settings: Any) -> None:
        probability = {"no_answer_probability": _NUMBER} if with_probability else {}
        prediction = {"id": _TEXT, "prediction_text": _TEXT} | probability
        self.features_taken = datasets.Features({"predictions": prediction, "references": _GOLD})
        super().__init__(**settings)

    def _compute(
        self, *, predictions: Any = None, references: Any = None, **_: Any
    ) -> dict[str, float]:
        given = {row["id"]: row["prediction_text"] for row in predictions}
        scores: list[tuple[bool, float, float]] = []

        for row in references:
            if row["id"] not in given:
                raise ConfigError(
                    f"question {row['id']} has no prediction: predict every question that is scored"
                )
            answers, text = list(row["answers"]["text"]), given[row["id"]]
            scores.append((bool(answers), *self._score(text, answers)))

        found = {
            "exact_match": _percent([s[1] for s in scores]),
            "answer_f1": _percent([s[2] for s in scores]),
        }

        if len({answerable for answerable, _, _ in scores}) == 2:
            for name, kind in (("answerable", True), ("unanswerable", False)):
                part = [score for score in scores if score[0] is kind]
                found |= {f"exact_match_{name}": _percent([score[1] for score in part])}
                found |= {f"answer_f1_{name}": _percent([score[2] for score in part])}

        return found

    def score(self, text: str, answers: list[str]) -> tuple[float, float]:
        """Return exact match and F1 of one answer, 0 to 1, against its references."""
        return self._score(text, answers)

    def _score(self, text: str, answers: list[str]) -> tuple[float, float]:
        raise NotImplementedError  # SQuAD and CMRC below each have rules of their own


class SquadAnswers(_AnswerMetric):
    """Exact match and F1 of SQuAD, in percent, as `exact_match` and `answer_f1`.

    By the script of SQuAD 2.0.

    Where questions have no answer too, also those of `..._answerable` and `..._unanswerable` ones.
    On questions with an answer the numbers are those of SQuAD 1.1, whose script differs for answers
    of nothing but articles and punctuation. Rajpurkar et al. 2016, arXiv:1606.05250; 2018,
    arXiv:1806.03822.
    """

    def _score(self, text: str, answers: list[str]) -> tuple[float, float]:
        golds = [answer for answer in answers if normalise_answer(answer)] or [""]
        exact = max(float(normalise_answer(gold) == normalise_answer(text)) for gold in golds)
        return exact, max(
            _bag_f1(normalise_answer(gold).split(), normalise_answer(text).split())
            for gold in golds
        )


class CmrcAnswers(_AnswerMetric):
    """Exact match and F1 of CMRC 2018 in percent, as `exact_match` and `answer_f1`.

    Cui et al. 2019.

    F1 is by the longest common run of units: a Chinese character, or a word of other writing. Words
    are split by NLTK as one sentence, which needs no download; the script of the benchmark cuts
    foreign text into sentences before, which differs only where a full stop stands inside a foreign
    part.
    """

    def _score(self, text: str, answers: list[str]) -> tuple[float, float]:
        exact = max(float(_without_marks(gold) == _without_marks(text)) for gold in answers or [""])
        return exact, max(_run_f1(_cmrc_units(gold), _cmrc_units(text)) for gold in answers or [""])


def normalise_answer(text: str) -> str:
    """Normalise an answer as SQuAD's script does.

    Lower case, no ASCII punctuation, no articles, single spaces.
    """
    plain = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


# What CMRC's script takes for punctuation. It lists the ellipsis as two characters, which no single
# one equals.
_CMRC_MARKS = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
_CMRC_UNITS = re.compile("[\u4e00-\u9fa5]|[^\u4e00-\u9fa5]+")


def _without_marks(text: str) -> str:
    return "".join(character for character in text.lower().strip() if character not in _CMRC_MARKS)


def _cmrc_units(text: str) -> list[str]:
    """Split a text without its punctuation into Chinese characters and other words."""
    split = _load_metrics_module("nltk.tokenize").word_tokenize
    units: list[str] = []

    for part in _CMRC_UNITS.findall(_without_marks(text)):
        units += (
            [part]
            if len(part) == 1 and unicodedata.category(part) == "Lo"
            else split(part, preserve_line=True)
        )

    return units


def _bag_f1(gold: Sequence[str], found: Sequence[str]) -> float:
    """Return F1 of two bags of words; where one is empty, whether both are."""
    if not gold or not found:
        return float(gold == found)
    shared = sum((Counter(gold) & Counter(found)).values())
    return 2 * shared / (len(gold) + len(found))


def _run_f1(gold: Sequence[str], found: Sequence[str]) -> float:
    """Return F1 of the longest run of units that both have.

    Where both are empty, 1: no answer is what was wanted.
    """
    if not gold and not found:
        return 1.0
    shared = SequenceMatcher(None, gold, found, autojunk=False).find_longest_match().size
    return 2 * shared / (len(gold) + len(found))


def _percent(shares: Sequence[float]) -> float:
    return 100 * sum(shares) / len(shares) if shares else 0.0


def _load_metrics_module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        package = {"sklearn": "scikit-learn"}.get(name.split(".")[0], name.split(".")[0])
        raise MissingExtraError(package, "metrics") from None
