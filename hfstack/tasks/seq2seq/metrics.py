"""Score the texts of an encoder-decoder beside naive texts such as the source.

Legend: B rows of a batch, S tokens of the longest source, T tokens of the longest generated text.
"""

from collections.abc import Sequence
from typing import Any, cast

import numpy
import torch
from accelerate import Accelerator, PartialState
from transformers import PreTrainedTokenizerBase
from trl import ModelConfig

from hfstack.data.reading.jsonl import write_jsonl
from hfstack.errors import DataError
from hfstack.logs import get_logger
from hfstack.models.heads import padding_id
from hfstack.runs.run import Run
from hfstack.tasks.question_answering.metrics import SENTENCE_END
from hfstack.tasks.seq2seq.data import EncodedPairs, Pair, column_value, encode_ended
from hfstack.tasks.seq2seq.model import load_finished_seq2seq, required_end_ids, text_lengths
from hfstack.tasks.shared.predict import (
    Predictor,
    answer_usable,
    by_length,
    problem_of_text,
    problem_of_texts,
)
from hfstack.tasks.shared.text_overlap import ROUGE_KINDS, bleu_interval, signatures, text_overlap
from hfstack.tokens.text_rows import pad_rows

logger = get_logger(__name__)

TEXT_SCORES = ("bleu", "chrf", *ROUGE_KINDS)
_SAMPLES, _SHOWN_CHARACTERS = 12, 400


def check_metrics() -> None:
    """Check before training that the scores can be computed after it.

    Raises:
        MissingExtraError: sacrebleu or rouge_score is not installed.
    """
    signatures(["a"], ["a"])


def decode_texts(ids: Any, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the texts of rows of token ids, without padding and special tokens."""
    rows = [[int(token) for token in row if token >= 0] for row in ids]
    return [cast(str, tokenizer.decode(row, skip_special_tokens=True)).strip() for row in rows]


def overlap_metrics(texts: Sequence[str], pairs: Sequence[Pair]) -> dict[str, float]:
    """Return BLEU and chrF (0 to 100) and ROUGE (0 to 1) against all targets.

    Their names are those of `TEXT_SCORES`.
    """
    return text_overlap(list(texts), [pair.targets for pair in pairs])


def naive_texts(pairs: Sequence[Pair]) -> dict[str, list[str]]:
    """Return naive texts: the source, and its first sentence where some have several."""
    found = {
        "copy": [pair.source for pair in pairs],
        "lead": [first_sentence(pair.source) for pair in pairs],
    }
    if found["lead"] == [text.strip() for text in found["copy"]]:
        del found["lead"]
    return found


def first_sentence(text: str) -> str:
    """Return a text up to the first `.`, `!` or `?` that ends a word."""
    return next(part for part in SENTENCE_END.split(text.strip()) if part.strip()).strip()


def record_text_scores(run: Run, texts: Sequence[str], held: EncodedPairs) -> dict[str, float]:
    """Record generated texts, and return their scores beside those of naive texts.

    In run.json: the table "scores" with each score, that of the naive texts and its signature, and
    "samples". All texts are in predictions.jsonl, in the order of the rows.

    Args:
        texts: one for each held-out row, in the order of `held`.

    Returns:
        The scores of the texts (`eval_`) and of naive ones (`baseline_`).
    """
    # held-out rows are sorted by length; people read them in the order of the file
    by_place = sorted(zip(held.places, held.pairs, texts, strict=True), key=lambda one: one[0])
    pairs = [pair for _, pair, _ in by_place]
    texts = [text for _, _, text in by_place]

    metrics, scores = score_texts(texts, pairs)
    _record_tables(run, pairs, texts, scores)
    _write_texts(run, pairs, texts)
    return {
        name if name.startswith("baseline_") else f"eval_{name}": value
        for name, value in metrics.items()
    }


def score_texts(
    texts: Sequence[str], pairs: Sequence[Pair]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Return the metrics of texts in the order of the file, and the table of scores.

    The metrics of naive texts begin with `baseline_`; the table has a column for each kind of text,
    the model's first.
    """
    own = overlap_metrics(texts, pairs)
    naive = {name: overlap_metrics(plain, pairs) for name, plain in naive_texts(pairs).items()}
    metrics = dict(own)
    targets = [pair.targets for pair in pairs]
    metrics["bleu_low"], metrics["bleu_high"] = bleu_interval(texts, targets)
    references = [first for first, *_ in targets]
    metrics["length_ratio"] = sum(map(len, texts)) / sum(map(len, references))
    metrics["rows"] = len(pairs)

    for name, scores in naive.items():
        metrics |= {f"baseline_{name}_{key}": value for key, value in scores.items()}
    return metrics, {"model": own} | naive


def _record_tables(
    run: Run, pairs: Sequence[Pair], texts: Sequence[str], scores: dict[str, dict[str, float]]
) -> None:
    """Add the tables of scores, a column for each kind of text, and of samples."""
    computed_by = signatures(list(texts), [pair.targets for pair in pairs])
    rows = [
        [name, *(round(one[name], 4) for one in scores.values()), computed_by[name]]
        for name in TEXT_SCORES
    ]
    run.add_table("scores", ["score", *scores, "signature"], rows)

    samples = [
        [_shorten_text(pair.source), _shorten_text(pair.targets[0]), _shorten_text(text)]
        for pair, text in zip(pairs[:_SAMPLES], texts, strict=False)
    ]
    run.add_table("samples", ["source", "reference", "output"], samples)


def _write_texts(run: Run, pairs: Sequence[Pair], texts: Sequence[str]) -> None:
    if PartialState().is_main_process:
        with write_jsonl(run.output_dir / "predictions.jsonl") as write:
            for pair, text in zip(pairs, texts, strict=True):
                write({"source": pair.source, "references": pair.targets, "text": text})
    run.add_artifact("predictions", "predictions.jsonl")


def _shorten_text(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]} ..."


@torch.no_grad()
def generate_texts(
    model: Any,
    sources: Sequence[list[int]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int = 32,
) -> list[str]:
    """Return what the model generates for each source, in order.

    Batches hold sources of about one length.
    """
    device = next(model.parameters()).device
    pad = padding_id(tokenizer)

    def generate(batch: list[list[int]]) -> list[Any]:
        inputs = pad_rows([{"input_ids": ids} for ids in batch], pad_token_id=pad)  # (B, S)
        on_device = {name: tensor.to(device) for name, tensor in inputs.items()}
        generated = model.generate(**on_device)  # (B, T)
        return decode_texts(generated.cpu().numpy().astype(numpy.int64), tokenizer)

    return by_length(sources, [len(ids) for ids in sources], generate, batch_size)


def load_seq2seq_predictor(
    args: ModelConfig,
    *,
    columns: tuple[str | None, str | None],
    batch_size: int,
    max_length: int | None,
) -> Predictor:
    """Load a finished encoder-decoder or adapter, and return what predicts rows.

    An answer is `{"text": ...}`.

    Args:
        columns: of the source; the second is not used. None for the one that the model was trained
            on.
        max_length: tokens after which a source is truncated; None for what it was trained with.

    Raises:
        CheckpointError: there is no whole model.
        ConfigError: it has no encoder, or `max_length` is more than it reads.
    """
    model, tokenizer, info = load_finished_seq2seq(args)
    model.to(Accelerator().device)
    limit, _ = text_lengths(
        max_length or info.get("max_source_length"), None, model.config, tokenizer
    )

    column = columns[0] or info.get("source_column", "source")
    prefix = info.get("source_prefix", "")
    ends = required_end_ids(model, tokenizer)

    def predict(rows: Sequence[dict[str, Any]], first_row: int = 1) -> list[dict[str, Any]]:
        texts = [prefix + column_value(row, column) for row in rows]
        sources, whole = encode_ended(texts, tokenizer, max_length=limit, ends=ends)

        long = sum(length > limit for length in whole)
        if long:
            last_row = first_row + len(rows) - 1
            logger.warning(
                "%d of rows %d to %d are truncated at %d tokens", long, first_row, last_row, limit
            )

        generated = generate_texts(model, sources, tokenizer, batch_size=batch_size)
        return [{"text": text} for text in generated]

    def problem_of(row: dict[str, Any]) -> str | None:
        try:
            text = column_value(row, column)
        except DataError:
            return problem_of_texts([column], "--text_column")(row)
        return problem_of_text(text, column)

    return answer_usable(predict, problem_of)
