"""Score a tagger: whole entities by seqeval, tags, and naive baselines beside.

Legend: N windows, T tokens of the longest, L tags.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from accelerate import Accelerator, PartialState
from trl import ModelConfig

from hfstack.data.reading.jsonl import write_jsonl
from hfstack.intervals import at_least_wilson, bootstrap_intervals
from hfstack.models.heads import padding_id
from hfstack.tasks.shared.metrics import F1, EntityF1
from hfstack.tasks.shared.predict import (
    Predictor,
    answer_usable,
    by_length,
    problem_of_text,
    problem_of_texts,
)
from hfstack.tasks.shared.task_models import check_length, load_finished
from hfstack.tasks.token_classification.data import (
    Sentence,
    SentenceWindow,
    collate_sentences,
    encode_sentences,
)
from hfstack.tasks.token_classification.schemes import (
    Entity,
    Scheme,
    as_seqeval,
    entities,
    is_entity_scheme,
    read_scheme,
    seqeval_scheme,
)


def likeliest_tags(outputs: Any, _: torch.Tensor) -> torch.Tensor:
    """Return the number of the likeliest tag of each token, (N, T).

    Args:
        outputs: logits (N, T, L); of an encoder-decoder with its states behind them.
    """
    logits = outputs[0] if isinstance(outputs, tuple) else outputs
    return logits.argmax(-1)


def word_tags(
    choices: Sequence[Sequence[int]],
    windows: Sequence[SentenceWindow],
    sentences: Sequence[Sentence],
    names: Sequence[str],
) -> list[list[str]]:
    """Return the tag of each word of each sentence, that of its first token.

    A word that has no token (a control character, for example) gets O, or the first tag where there
    is no O.

    Args:
        choices: the chosen tag's id at each token, N rows of at least T.
    """
    outside = "O" if "O" in names else names[0]
    found = [[outside] * len(sentence.words) for sentence in sentences]
    for window, row in zip(windows, choices, strict=True):
        for word, choice in zip(window.words, row, strict=False):
            if word >= 0:
                found[window.sentence][word] = names[int(choice)]
    return found


def metric_names(names: Sequence[str]) -> list[str]:
    """Return the names of what `tag_metrics` measures, to choose a best model by."""
    whole = ["entity_f1", "entity_precision", "entity_recall"]
    return [*(whole if is_entity_scheme(names) else ["tag_f1_macro"]), "tag_accuracy"]


def tag_metrics(
    gold: Sequence[Sequence[str]],
    predicted: Sequence[Sequence[str]],
    names: Sequence[str] | None = None,
) -> dict[str, float]:
    """Return entity precision, recall and F1 with the accuracy of tags.

    Of other tags accuracy and macro F1.

    Args:
        gold: tags of each sentence.
        predicted: as many.
        names: of all tags, which say the scheme; by default those that occur.
    """
    scheme = scheme_of(gold, predicted, names)
    if scheme is not None:
        columns = [[as_seqeval(tags, scheme) for tags in rows] for rows in (gold, predicted)]
        found = EntityF1(seqeval_scheme(scheme)).compute(
            references=columns[0], predictions=columns[1]
        )
        return {name: float(value) for name, value in (found or {}).items()}

    occurring = sorted({tag for tags in [*gold, *predicted] for tag in tags})
    ids = {name: index for index, name in enumerate(occurring)}
    flat: dict[str, list[Any]] = {
        "references": [ids[tag] for tags in gold for tag in tags],
        "predictions": [ids[tag] for tags in predicted for tag in tags],
    }

    score = F1("macro").compute(**flat) or {}
    right = sum(a == b for a, b in zip(flat["references"], flat["predictions"], strict=True))
    return {
        "tag_accuracy": right / len(flat["references"]),
        "tag_f1_macro": float(score["f1_macro"]),
    }


def scheme_of(
    gold: Sequence[Sequence[str]],
    predicted: Sequence[Sequence[str]],
    names: Sequence[str] | None,
) -> Scheme | None:
    """Read the scheme from all tags of the task, or from those that occur."""
    if names is not None and "O" not in names:
        return None
    return read_scheme(names or sorted({tag for tags in [*gold, *predicted] for tag in tags}))


def type_table(
    gold: Sequence[Sequence[str]],
    predicted: Sequence[Sequence[str]],
    names: Sequence[str] | None = None,
) -> tuple[list[str], list[list[Any]]]:
    """Return a table by entity type, or tag: precision, recall, F1 and count."""
    scheme = scheme_of(gold, predicted, names)
    units = _each_tag if scheme is None else partial(entities, scheme=scheme)
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])  # right, predicted, there

    for truth, guess in zip(gold, predicted, strict=True):
        wanted, given = set(units(truth)), set(units(guess))
        for place, group in enumerate((wanted & given, given, wanted)):
            for kind, _, _ in group:
                counts[kind][place] += 1

    rows = []
    for kind in sorted(counts):
        right, given, there = counts[kind]
        precision, recall, f1 = _precision_recall_f1(right, given, there)
        rows.append([kind, round(precision, 4), round(recall, 4), round(f1, 4), there])

    return ["type", "precision", "recall", "F1", "count"], rows


def _each_tag(tags: Sequence[str]) -> list[Entity]:
    return [(tag, index, index) for index, tag in enumerate(tags)]


def beside_baseline(
    train: Sequence[Sentence],
    rows: Sequence[Sentence],
    predicted: Sequence[Sequence[str]],
    names: Sequence[str] | None = None,
) -> dict[str, float]:
    """Return a naive tagger's scores (`baseline_`) and the interval of entity F1."""
    gold = [sentence.tags for sentence in rows]
    found = {
        f"baseline_{name}": value
        for name, value in tag_metrics(gold, baseline_tags(train, rows), names).items()
    }
    scheme = scheme_of(gold, predicted, names)
    if scheme is not None:
        interval = f1_interval(gold, predicted, scheme=scheme)
        found |= {f"eval_{name}": value for name, value in interval.items()}
    return found


def f1_interval(
    gold: Sequence[Sequence[str]],
    predicted: Sequence[Sequence[str]],
    *,
    scheme: Scheme = "BIO",
    seed: int = 0,
) -> dict[str, float]:
    """Return the 95 % interval of entity F1, drawing whole sentences.

    Where the sentences are few, or F1 is near 0 or 1, at least Wilson's of so many shares.
    """
    counts = entity_counts(gold, predicted, scheme)

    def f1(rows: numpy.ndarray[Any, Any]) -> dict[str, float]:
        return {"f1": f1_of_counts(counts[rows].sum(0).tolist())}

    found = bootstrap_intervals(f1, len(counts), seed=seed)["f1"]
    whole = f1_of_counts(counts.sum(0).tolist())
    low, high = at_least_wilson(found, whole, len(counts))
    return {"entity_f1_low": low, "entity_f1_high": high}


def entity_counts(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], scheme: Scheme
) -> numpy.ndarray[Any, Any]:
    """Return (N, 3) of the sentences: right entities, predicted ones, those there."""
    table: list[tuple[int, int, int]] = []
    for truth, guess in zip(gold, predicted, strict=True):
        wanted, given = set(entities(truth, scheme)), set(entities(guess, scheme))
        table.append((len(wanted & given), len(given), len(wanted)))
    return numpy.array(table)


def f1_of_counts(counts: Sequence[int]) -> float:
    """Return F1 of how many entities are right, predicted and there."""
    right, given, there = counts
    return _precision_recall_f1(right, given, there)[2]


def _precision_recall_f1(right: int, given: int, there: int) -> tuple[float, float, float]:
    precision, recall = right / given if given else 0.0, right / there if there else 0.0
    return precision, recall, 2 * right / (given + there) if given + there else 0.0


def write_tagged(
    path: Path, sentences: Sequence[Sentence], predicted: Sequence[Sequence[str]]
) -> None:
    """Write words, tags and predicted tags of each sentence, on the first process."""
    if not PartialState().is_main_process:
        return
    with write_jsonl(path) as add:
        for sentence, tags in zip(sentences, predicted, strict=True):
            add({"words": sentence.words, "tags": sentence.tags, "predicted": list(tags)})


def baseline_tags(train: Sequence[Sentence], rows: Sequence[Sentence]) -> list[list[str]]:
    """Tag each word as it mostly is in the train rows, wherever it stands.

    New words get the commonest tag.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for sentence in train:
        for word, tag in zip(sentence.words, sentence.tags, strict=True):
            counts[word.lower()][tag] += 1
    commonest = Counter(tag for sentence in train for tag in sentence.tags).most_common(1)[0][0]
    known = {word: tags.most_common(1)[0][0] for word, tags in counts.items()}
    return [[known.get(word.lower(), commonest) for word in sentence.words] for sentence in rows]


@torch.no_grad()
def tag_probabilities(
    model: torch.nn.Module,
    windows: Sequence[SentenceWindow],
    *,
    pad_token_id: int,
    batch_size: int = 32,
) -> list[numpy.ndarray[Any, Any]]:
    """Return tag probabilities (T, L) of each window, in order.

    Computed in batches of about one length.
    """
    device = next(model.parameters()).device

    def score(batch: list[SentenceWindow]) -> list[Any]:
        rows = [{"input_ids": window.input_ids, "labels": window.labels} for window in batch]
        inputs = collate_sentences(rows, pad_token_id=pad_token_id)
        inputs.pop("labels")
        # (B, T, L)
        logits = model(**{name: tensor.to(device) for name, tensor in inputs.items()}).logits
        chance = logits.float().softmax(-1).cpu().numpy()
        return [chance[row, : len(window.input_ids)] for row, window in enumerate(batch)]

    return by_length(windows, [len(window.input_ids) for window in windows], score, batch_size)


def load_tag_predictor(
    args: ModelConfig,
    *,
    columns: tuple[str | None, str | None],
    batch_size: int,
    max_length: int | None,
) -> Predictor:
    """Load a finished tagger, and return what predicts rows: tags and entities.

    Entities come with probabilities.

    The text of a row is a list of words, or one text, which is split at white space.

    Args:
        columns: of the text; the second is not used. None for the one that the model was trained
            on.
        max_length: tokens of a window; longer texts are split between words.

    Raises:
        CheckpointError: there is no whole tagger.
        ConfigError: `max_length` is more than the model reads.
    """
    model, tokenizer, info = load_finished(args, "TokenClassification")
    model.to(Accelerator().device)  # pyright: ignore[reportArgumentType]
    limit = check_length(max_length or info.get("max_length"), model.config, tokenizer)
    column = columns[0] or info.get("tokens_column", "tokens")
    config: Any = model.config
    names = [config.id2label[index] for index in range(config.num_labels)]

    pad = padding_id(tokenizer)

    def predict(rows: Sequence[dict[str, Any]], first_row: int = 1) -> list[dict[str, Any]]:
        del first_row
        texts = [row[column] for row in rows]
        words = [text.split() if isinstance(text, str) else text for text in texts]
        sentences = [Sentence(each, []) for each in words]
        windows = encode_sentences(sentences, tokenizer, max_length=limit)
        chance = tag_probabilities(model, windows, pad_token_id=pad, batch_size=batch_size)
        return _answers(sentences, windows, chance, names)

    def problem_of(row: dict[str, Any]) -> str | None:
        if not isinstance(row.get(column), list):
            return problem_of_texts([column], "--text_column")(row)
        if not all(isinstance(word, str) for word in row[column]):
            return f"{column} is {str(row[column])[:40]!r}, not a list of words"
        return problem_of_text(" ".join(row[column]), column)

    return answer_usable(predict, problem_of)


def _answers(
    sentences: Sequence[Sentence],
    windows: Sequence[SentenceWindow],
    chance: Sequence[numpy.ndarray[Any, Any]],
    names: Sequence[str],
) -> list[dict[str, Any]]:
    """Return words, tags and entities of each sentence.

    An entity's probability is the mean of its words' tags.
    """
    tags = word_tags([rows.argmax(-1).tolist() for rows in chance], windows, sentences, names)
    certain = [[0.0] * len(sentence.words) for sentence in sentences]
    scheme = scheme_of([], [], names)

    for window, rows in zip(windows, chance, strict=True):
        for word, row in zip(window.words, rows, strict=True):
            if word >= 0:
                certain[window.sentence][word] = float(row.max())

    answers = []
    for sentence, own, sure in zip(sentences, tags, certain, strict=True):
        spans = [
            {
                "type": kind,
                "text": " ".join(sentence.words[begin : end + 1]),
                "first_word": begin,
                "last_word": end,
                "probability": round(sum(sure[begin : end + 1]) / (end + 1 - begin), 6),
            }
            for kind, begin, end in ([] if scheme is None else entities(own, scheme))
        ]

        answers.append({"words": sentence.words, "tags": own, "entities": spans})

    return answers
