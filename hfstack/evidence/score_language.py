"""Score a language model on text or answers by the functions of its training.

Rows of text are scored token by token: causally as by `evaluate_lm`, masked as at the end of
`pretrain_mlm`. Rows of prompts with answers are scored as at the end of `sft`: by the loss of the
answers, and by what the model answers itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy
from accelerate import Accelerator
from datasets import Dataset
from transformers import Trainer, TrainingArguments
from trl import ModelConfig

from hfstack.errors import ConfigError, DataError
from hfstack.evidence.scored import (
    ScoreArgs,
    Scored,
    Scorer,
    evaluation_settings,
    predict_held_out,
)
from hfstack.intervals import bootstrap_intervals, share_interval
from hfstack.logs import get_logger
from hfstack.models.context import context_length
from hfstack.models.loading import load_causal_lm, load_masked_lm, load_tokenizer
from hfstack.runs.checkpoint_files import step_of
from hfstack.runs.record import RUN_FILE, read_run
from hfstack.tasks.causal_lm import document_scores as causal_lm
from hfstack.tasks.causal_lm.generate import Completion
from hfstack.tasks.causal_lm.metrics import compute_metrics
from hfstack.tasks.causal_lm.prompt_format import find_prompt_format
from hfstack.tasks.masked_lm import metrics as masked_lm
from hfstack.tasks.masked_lm.masking import MaskedBlocks, pack_masked_splits
from hfstack.tasks.masked_lm.model import score_only_masked
from hfstack.tasks.sft import answers as sft_answers
from hfstack.tasks.sft.columns import Columns, convert_rows, detect_format
from hfstack.tasks.sft.encoding import encode_usable_rows, prompts_with_references
from hfstack.tasks.sft.setup import needs_marks, training_template
from hfstack.tasks.shared.text_overlap import bleu_interval, count_for_bleu, rouge_of_texts
from hfstack.tokens.chat import stop_at_end_of_turn
from hfstack.tokens.seams import answer_opening
from hfstack.tokens.turns import SYSTEM_NAMES, TOOLS_NAMES

logger = get_logger(__name__)

_WINDOW = 1024  # tokens, where neither the model nor the run bounds it


def load_causal_scorer(
    args: ModelConfig, how: ScoreArgs, *, answer_rows: int = 0, answer_tokens: int = 200
) -> Scorer:
    """Load a causal language model.

    Args:
        answer_rows: rows of prompts with answers that the model answers too.
        answer_tokens: tokens of the longest answer.

    Raises:
        CheckpointError: there is no causal language model.
        ConfigError: `--max_length` is more than it reads.
    """
    tokenizer = load_tokenizer(args)
    model: Any = load_causal_lm(args, tokenizer)
    model.to(Accelerator().device).eval()
    recorded = _recorded_settings(args.model_name_or_path)
    columns = Columns(
        how.text_column or recorded.get("prompt_column", "prompt"),
        how.label(recorded.get("completion_column", "completion")),
        recorded.get("context_column"),
        how.text_column or recorded.get("text_column", "text"),
    )

    def score(rows: Dataset) -> Scored:
        if detect_format(rows, columns) == "text":
            return _score_plain_texts(model, tokenizer, rows[columns.text][:], how)
        chat = find_prompt_format(args.model_name_or_path or "", tokenizer).kind == "chat"
        if chat:
            stop_at_end_of_turn(model, tokenizer)
        converted = convert_rows(rows, columns, as_chat=chat)

        only = bool(recorded.get("assistant_only_loss", False))
        completion_only = recorded.get("completion_only_loss") is not False
        with training_template(tokenizer, assistant_only=only) as own_template:
            if only and completion_only and "messages" in converted.column_names:
                only = needs_marks({"eval": converted}, tokenizer)
            encoded = encode_usable_rows(
                converted,
                tokenizer,
                name="eval",
                max_length=how.max_length
                or recorded.get("max_length")
                or context_length(model.config),
                assistant_only=only,
                completion_only=completion_only,
                own_template=own_template,
            )

        batch = {} if how.batch_size is None else {"batch_size": how.batch_size}
        of_parts = sft_answers.answer_losses(model, tokenizer, encoded, **batch)
        losses = _sum_by_row(of_parts, encoded["row"][:])
        asked = _ask(model, tokenizer, converted, answer_rows, answer_tokens)
        return _answers_as_scored(losses, *asked)

    read = {columns.prompt, columns.completion, columns.context or columns.text, columns.text}
    read |= {"messages", "conversations", "history", *SYSTEM_NAMES, *TOOLS_NAMES}
    return Scorer(read, score, purpose="conversations")


def load_masked_scorer(args: ModelConfig, how: ScoreArgs) -> Scorer:
    """Load a masked language model.

    Raises:
        CheckpointError: there is no masked language model.
    """
    tokenizer = load_tokenizer(args)
    model: Any = load_masked_lm(args, tokenizer)
    model.to(Accelerator().device).eval()
    recorded = _recorded_settings(args.model_name_or_path)
    column = how.text_column or recorded.get("text_column", "text")
    longest = how.max_length or recorded.get("block_size") or context_length(model.config)

    def score(rows: Dataset) -> Scored:
        _refuse_missing(rows, column)
        scores = masked_lm.pseudo_log_likelihoods(
            model,
            tokenizer,
            rows[column][:],
            max_length=longest or _WINDOW,
            **({} if how.batch_size is None else {"batch_size": how.batch_size}),
        )
        texts = rows[column][:]
        scored = _documents_as_scored(texts, scores, tokenizer, _masked_metrics, "pseudo_loss")
        if "mask_probability" not in recorded:
            return scored
        of_blocks = _score_blocks(model, tokenizer, rows.select_columns([column]), recorded, how)
        return replace(scored, metrics=scored.metrics | of_blocks)

    return Scorer({column}, score)


def _score_blocks(
    model: Any, tokenizer: Any, rows: Dataset, recorded: dict[str, Any], how: ScoreArgs
) -> dict[str, float]:
    """Measure the masked tokens of the blocks that training makes of such rows.

    Args:
        rows: with one column, of text.
        recorded: settings of the run that trained the model.
    """
    try:
        blocks = pack_masked_splits(
            {"eval": cast(Any, rows)},
            tokenizer,
            text_column=rows.column_names[0],
            block_size=recorded["block_size"],
            unit=recorded["mask_unit"],
            probability=recorded["mask_probability"],
            isolate_documents=recorded["isolate_documents"],
            seed=recorded["seed"],
        )
    except DataError as error:
        logger.warning("eval_loss, which is of whole blocks, is not measured: %s", error)
        return {}

    score_only_masked(model)
    batch_size = how.batch_size or recorded["per_device_eval_batch_size"]
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**evaluation_settings(batch_size)),
        data_collator=MaskedBlocks.collate,
        compute_metrics=masked_lm.masked_metrics,
    )
    return predict_held_out(trainer, blocks["eval"])[0]


def _score_plain_texts(model: Any, tokenizer: Any, texts: list[str], how: ScoreArgs) -> Scored:
    """Score documents as `evaluate_lm` does with its defaults."""
    longest = context_length(model.config)
    if how.max_length is not None and longest is not None and how.max_length > longest:
        raise ConfigError(
            f"--max_length {how.max_length} is longer than the model's context of {longest} tokens"
        )
    max_length = how.max_length or longest or _WINDOW
    scores = causal_lm.score_documents(
        model,
        tokenizer,
        texts,
        max_length=max_length,
        stride=max(1, max_length // 2),
        batch_size=how.batch_size or 8,
    )
    return _documents_as_scored(texts, scores, tokenizer, _causal_metrics, "bits_per_byte")


def _causal_metrics(scores: Sequence[causal_lm.DocumentScore]) -> dict[str, float]:
    found = compute_metrics(scores)
    return found | (causal_lm.bootstrap_interval(scores) if len(scores) > 1 else {})


def _masked_metrics(scores: Sequence[causal_lm.DocumentScore]) -> dict[str, float]:
    found = {
        "pseudo_perplexity": masked_lm.pseudo_perplexity(scores),
        "texts_scored": len(scores),
        "pseudo_loss": sum(one.nll for one in scores) / sum(one.tokens for one in scores),
        "pseudo_accuracy": sum(one.correct for one in scores) / sum(one.tokens for one in scores),
    }
    if len(scores) > 1:
        interval = causal_lm.bootstrap_interval(scores)
        ends = {end: interval[f"eval_loss_{end}"] for end in ("low", "high")}
        found |= {f"pseudo_loss_{end}": loss for end, loss in ends.items()}
        found |= {
            f"pseudo_perplexity_{end}": causal_lm.perplexity(loss) for end, loss in ends.items()
        }
    return found


def _documents_as_scored(
    texts: Sequence[str],
    scores: list[causal_lm.DocumentScore],
    tokenizer: Any,
    metrics_of: Callable[[Sequence[causal_lm.DocumentScore]], dict[str, float]],
    main: str,
) -> Scored:
    """Return scored documents; those without a token are left out, as in training."""
    places = list(range(len(texts)))
    if len(scores) < len(texts):
        special = {"add_special_tokens": False, "verbose": False}
        places = [i for i, text in enumerate(texts) if tokenizer(text, **special)["input_ids"]]

    table = numpy.array([[one.nll, one.tokens, one.utf8_bytes, one.correct] for one in scores])
    masked = main == "pseudo_loss"

    def measure(indices: Sequence[int]) -> dict[str, float]:
        return metrics_of([scores[i] for i in indices])

    def resample(index: numpy.ndarray[Any, Any]) -> dict[str, float]:
        nll, tokens, size, correct = table[index].sum(axis=0)
        if masked:
            return {"pseudo_loss": nll / tokens, "pseudo_accuracy": correct / tokens}
        bits = nll / numpy.log(2) / size
        return {
            "bits_per_byte": bits,
            "eval_loss": nll / tokens,
            "token_accuracy": correct / tokens,
        }

    metrics = measure(range(len(scores)))
    if not masked:
        metrics |= {"documents": len(scores), "tokens": int(table[:, 1].sum())}
    return Scored(
        metrics=metrics,
        main=main,
        places=places,
        answers=[
            {"nll": one.nll, "tokens": one.tokens, "utf8_bytes": one.utf8_bytes} for one in scores
        ],
        measure=measure,
        resample=resample,
        lower_is_better=frozenset({"pseudo_loss", "bits_per_byte", "eval_loss"}),
    )


def _ask(
    model: Any, tokenizer: Any, rows: Dataset, count: int, longest_answer: int
) -> tuple[list[int], list[Completion], list[str]]:
    """Return which rows were asked, the answers, and the references."""
    context = context_length(model.config)
    room = None if context is None else context - longest_answer
    indices: list[int] = []
    asked: list[tuple[list[int], str]] = []
    for index, row in enumerate(cast(Any, rows)):
        if len(asked) == count:
            break
        found = prompts_with_references(cast(Any, [row]), tokenizer, limit=1, longest=room)
        if found and found[0][1] is not None:
            indices.append(index)
            asked.append((found[0][0], found[0][1]))

    if count and not asked:
        raise DataError(
            f"no row has a prompt that leaves room for --answer_tokens {longest_answer}: lower it, "
            "or --answer_rows 0"
        )
    opening = answer_opening(tokenizer) if "messages" in rows.column_names else ""
    answers = (
        sft_answers.answer_greedily(
            model,
            tokenizer,
            [ids for ids, _ in asked],
            max_new_tokens=longest_answer,
            opening=opening,
        )
        if asked
        else []
    )
    return indices, answers, [reference for _, reference in asked]


def _sum_by_row(
    losses: Sequence[tuple[float, int]], rows: Sequence[int]
) -> list[tuple[float, int]]:
    """Add up loss and tokens of the parts of each conversation."""
    sums = [(0.0, 0)] * (max(rows) + 1)
    for row, (loss, tokens) in zip(rows, losses, strict=True):
        sums[row] = sums[row][0] + loss, sums[row][1] + tokens
    return sums


def _answers_as_scored(
    losses: list[tuple[float, int]],
    asked: list[int],
    answers: list[Completion],
    references: list[str],
) -> Scored:
    """Return scored answers: the loss of all rows, and the texts of those asked."""
    table = numpy.array(losses)  # (N, 2): summed loss, tokens
    texts = [one.completion for one in answers]
    place_of = {index: place for place, index in enumerate(asked)}
    exact = numpy.array([a.strip() == b.strip() for a, b in zip(texts, references, strict=True)])
    bleu = count_for_bleu(texts, references) if texts else None
    rouge = rouge_of_texts(texts, references) if texts else {}

    def mean_loss(index: numpy.ndarray[Any, Any]) -> dict[str, float]:
        total, tokens = table[index].sum(axis=0)
        return {"held_out_loss": float(total / tokens)}

    def measure(indices: Sequence[int]) -> dict[str, float]:
        part = numpy.asarray(indices)
        found = sft_answers.loss_of_rows([losses[i] for i in indices])
        drawn = bootstrap_intervals(lambda rows: mean_loss(part[rows]), len(part))["held_out_loss"]
        found["held_out_loss_low"], found["held_out_loss_high"] = drawn

        if chosen := [place_of[i] for i in indices if i in place_of]:
            own, wanted = [texts[i] for i in chosen], [references[i] for i in chosen]
            found |= sft_answers.describe_answers([answers[i] for i in chosen], wanted)
            found["bleu_low"], found["bleu_high"] = bleu_interval(own, wanted)
            hits = [float(exact[i]) for i in chosen]
            found["exact_match"] = sum(hits) / len(hits)
            found["exact_match_low"], found["exact_match_high"] = share_interval(hits)
        return found

    def resample(index: numpy.ndarray[Any, Any]) -> dict[str, float]:
        found = mean_loss(index)
        chosen = numpy.array([place_of[i] for i in index.tolist() if i in place_of], dtype=int)
        if bleu is not None and len(chosen):
            found |= {kind: float(values[chosen].mean()) for kind, values in rouge.items()}
            found["bleu"] = bleu.score(chosen)
            found["exact_match"] = float(exact[chosen].mean())
        return found

    rows: list[dict[str, Any]] = [{"nll": total, "tokens": count} for total, count in losses]
    for index, one, reference in zip(asked, answers, references, strict=True):
        rows[index] |= {"prompt": one.prompt, "answer": one.completion, "reference": reference}
    return Scored(
        metrics=measure(range(len(losses))),
        main="held_out_loss",
        places=list(range(len(losses))),
        answers=rows,
        measure=measure,
        resample=resample,
        lower_is_better=frozenset({"held_out_loss"}),
    )


def _recorded_settings(name: str | None) -> dict[str, Any]:
    """Return the settings of the run that trained a model, {} where there is none."""
    folder = Path(name or "")
    folder = folder.parent if step_of(folder) >= 0 else folder
    if not name or not (folder / RUN_FILE).is_file():
        return {}
    merged: dict[str, Any] = {}
    for settings in read_run(folder).settings.values():
        merged |= settings
    return merged


def _refuse_missing(rows: Dataset, column: str) -> None:
    if column not in rows.column_names:
        raise DataError(
            f"no column {column!r}, found {', '.join(rows.column_names)}; set --text_column"
        )
