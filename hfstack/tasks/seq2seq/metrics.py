"""Score the texts of an encoder-decoder beside naive texts such as the source.

Legend: B rows of a batch, S tokens of the longest source, T tokens of the longest text written.
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
from hfstack.tasks.seq2seq.data import Encoded, Pair, encode_ended, text_at
from hfstack.tasks.seq2seq.model import load_finished_seq2seq, stop_tokens, text_lengths
from hfstack.tasks.shared.predict import Predictor, by_length
from hfstack.tasks.shared.text_overlap import ROUGE_KINDS, bleu_interval, signatures, text_overlap
from hfstack.tokens.text_rows import pad_rows

logger = get_logger(__name__)

METRICS = ("bleu", "chrf", *ROUGE_KINDS)
_SAMPLES, _SHOWN_CHARACTERS = 12, 400


def check_metrics() -> None:
    """Find out before training whether the scores can be computed after it.

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

    bleu, chrf, rouge1, rouge2, rougeL and rougeLsum.
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


def record_results(run: Run, texts: Sequence[str], held: Encoded) -> dict[str, float]:
    """Record the scores of the texts (`eval_`) and of naive ones (`baseline_`).

    Tables and predictions are kept as well.

    In run.json: the table "scores" with each score, that of the naive texts and its signature, and
    "samples". All texts are in predictions.jsonl, in the order of the rows.
    """
    ordered = sorted(zip(held.places, held.pairs, texts, strict=True), key=lambda one: one[0])
    pairs, texts = [pair for _, pair, _ in ordered], [text for _, _, text in ordered]
    naive = {name: overlap_metrics(plain, pairs) for name, plain in naive_texts(pairs).items()}
    own = overlap_metrics(texts, pairs)
    targets = [pair.targets for pair in pairs]
    how = signatures(texts, targets)
    rows = [
        [name, *(round(scores[name], 4) for scores in (own, *naive.values())), how[name]]
        for name in METRICS
    ]

    run.add_table("scores", ["score", "model", *naive, "signature"], rows)
    samples = [
        [_shown(pair.source), _shown(pair.targets[0]), _shown(text)]
        for _, pair, text in ordered[:_SAMPLES]
    ]

    run.add_table("samples", ["source", "reference", "output"], samples)
    if PartialState().is_main_process:
        with write_jsonl(run.output_dir / "predictions.jsonl") as add:
            for pair, text in zip(pairs, texts, strict=True):
                add({"source": pair.source, "references": pair.targets, "text": text})

    run.add_artifact("predictions", "predictions.jsonl")
    metrics = {f"eval_{name}": value for name, value in own.items()}
    metrics["eval_bleu_low"], metrics["eval_bleu_high"] = bleu_interval(texts, targets)
    written, wanted = (
        sum(map(len, column)) for column in (texts, [targets[0] for targets in targets])
    )
    metrics |= {"eval_length_ratio": written / wanted, "eval_rows": len(pairs)}

    return metrics | {
        f"baseline_{name}_{key}": value
        for name, scores in naive.items()
        for key, value in scores.items()
    }


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]} ..."


@torch.no_grad()
def write_texts(
    model: Any,
    sources: Sequence[list[int]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int = 32,
) -> list[str]:
    """Return what the model writes for each source, in order.

    Batches hold sources of about one length.
    """
    device = next(model.parameters()).device
    pad = padding_id(tokenizer)

    def write(batch: list[list[int]]) -> list[Any]:
        inputs = pad_rows([{"input_ids": ids} for ids in batch], pad_token_id=pad)  # (B, S)
        # (B, T)
        written = model.generate(**{name: tensor.to(device) for name, tensor in inputs.items()})
        return decode_texts(written.cpu().numpy().astype(numpy.int64), tokenizer)

    return by_length(sources, [len(ids) for ids in sources], write, batch_size)


def load_seq2seq_predictor(
    args: ModelConfig,
    *,
    columns: tuple[str | None, str | None],
    batch_size: int,
    max_length: int | None,
) -> Predictor:
    """Load a finished encoder-decoder, and return what predicts rows: `{"text": ...}`.

    An adapter works too.

    Args:
        columns: of the source; the second is not used. None for the one that the model was trained
            on.
        max_length: tokens after which a source is cut; None for what it was trained with.

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
    prefix, ends = info.get("source_prefix", ""), stop_tokens(model, tokenizer)

    def predict(rows: Sequence[dict[str, Any]], first_row: int = 1) -> list[dict[str, Any]]:
        texts = []
        for number, row in enumerate(rows, first_row):
            try:
                text = text_at(row, column, place=f"row {number}")
            except DataError:
                raise DataError(
                    f"row {number} has no column {column!r}, found {', '.join(row)}; set "
                    "--text_column"
                ) from None

            if not isinstance(text, str) or not text.strip():
                raise DataError(
                    f"row {number}: {column} is {str(text)[:40]!r}, not text; remove the row"
                )

            texts.append(prefix + text)

        sources, whole = encode_ended(texts, tokenizer, max_length=limit, ends=ends)
        if long := sum(length > limit for length in whole):
            last_row = first_row + len(rows) - 1
            logger.warning(
                "%d of rows %d to %d are cut at %d tokens", long, first_row, last_row, limit
            )

        return [
            {"text": text} for text in write_texts(model, sources, tokenizer, batch_size=batch_size)
        ]

    return predict
