"""Answer held-out prompts, and compare the answers with their references.

Prompts come as token ids because a chat template has rendered them: putting a start token in front,
as for plain text, would be a beginning that the model was never trained on.

Legend: B rows of a batch, T tokens of the longest, V vocabulary.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfstack.data.reading.jsonl import write_jsonl
from hfstack.errors import DataError
from hfstack.models.context import context_length
from hfstack.models.evaluation_mode import evaluation_mode
from hfstack.runs.run import Run
from hfstack.tasks.causal_lm.document_scores import perplexity
from hfstack.tasks.causal_lm.generate import Completion, generate_from_ids
from hfstack.tasks.sft.encoding import encode_user_texts, prompts_with_references
from hfstack.tasks.shared.probe_settings import ProbeArgs
from hfstack.tokens.seams import answer_opening
from hfstack.tokens.special_tokens import IGNORED_LABEL, padding_token_id
from hfstack.training.callbacks import SampleTable

_SHOWN_ANSWERS = 3  # held-out ones, where none are named


@dataclass
class PromptArgs(ProbeArgs):
    """What a model is asked while it is trained on answers, and at the end."""

    answer_rows: int = 0
    """Answer this many held-out prompts at the end and score them against their references (BLEU,
    chrF, ROUGE).
    """
    answer_tokens: int = 200
    """Longest answer and longest sample, in tokens."""
    sample_prompts: list[str] = field(default_factory=list)
    """Prompts whose answers are written to samples.jsonl at each evaluation; three of the held-out
    ones by default.
    """


@dataclass(frozen=True)
class AskedPrompts:
    """Prompts as token ids: those whose answers are shown, and those that are scored."""

    shown: list[list[int]]
    scored: list[tuple[list[int], str | None]]  # each with its reference
    opening: str  # from `answer_opening` where the prompts are conversations
    max_new_tokens: int


def choose_prompts(
    args: PromptArgs,
    rows: Mapping[str, Dataset],
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
) -> AskedPrompts:
    """Return held-out prompts that are short enough to leave room for an answer.

    Args:
        rows: of each split, from `columns.convert_rows`; without held-out rows those of training.
        model: the one that answers, for its context.
    """
    held_out = rows.get("eval", rows["train"])
    context = context_length(model.config)
    asked = prompts_with_references(
        held_out,
        tokenizer,
        limit=max(args.answer_rows, _SHOWN_ANSWERS),
        longest=None if context is None else context - args.answer_tokens,
    )

    chat = "messages" in rows["train"].column_names
    own = encode_user_texts(args.sample_prompts, tokenizer, chat=chat)
    return AskedPrompts(
        shown=own or [prompt for prompt, _ in asked[:_SHOWN_ANSWERS]],
        scored=asked[: args.answer_rows],
        opening=answer_opening(tokenizer) if chat else "",
        max_new_tokens=args.answer_tokens,
    )


def answer_pairs(
    model: PreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    opening: str = "",
) -> list[tuple[str, str]]:
    """Return (prompt, answer) pairs by greedy decoding, to look at while training.

    Args:
        opening: from `answer_opening` where the prompts are conversations.
    """
    answers = generate_from_ids(
        model, tokenizer, prompts, max_new_tokens=max_new_tokens, temperature=0.0, opening=opening
    )
    return [(one.prompt, one.completion) for one in answers]


def watch_answers(run: Run, tokenizer: PreTrainedTokenizerBase, asked: AskedPrompts) -> SampleTable:
    """Return the callback that saves answers to prompts at each evaluation."""
    run.add_artifact("samples", "samples.jsonl")
    sample = partial(
        answer_pairs,
        tokenizer=tokenizer,
        prompts=asked.shown,
        max_new_tokens=asked.max_new_tokens,
        opening=asked.opening,
    )
    return SampleTable(run.output_dir / "samples.jsonl", sample)


def record_answers(
    run: Run, trainer: Any, tokenizer: PreTrainedTokenizerBase, asked: AskedPrompts
) -> dict[str, float]:
    """Let the trained model answer, save its answers, and return their scores.

    Errors and keys are those of `score_answers`.
    """
    metrics = score_answers(
        trainer.model,
        tokenizer,
        asked.scored,
        max_new_tokens=asked.max_new_tokens,
        opening=asked.opening,
        file=run.output_dir / "answers.jsonl" if trainer.is_world_process_zero() else None,
    )
    run.add_artifact("answers", "answers.jsonl")
    return metrics


def score_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[tuple[list[int], str | None]],
    *,
    max_new_tokens: int,
    file: Path | None = None,
    opening: str = "",
) -> dict[str, float]:
    """Answer prompts greedily and compare with their references.

    Args:
        asked: prompts as token ids, each with its reference.
        max_new_tokens: longest answer.
        file: jsonl that gets a row for each prompt: prompt, answer, reference, tokens, finished.
        opening: from `answer_opening` where the prompts are conversations.

    Returns:
        The scores of `text_overlap`, finished_share (answers that ended by themselves),
        mean_answer_tokens and answer_rows.

    Raises:
        DataError: there is no prompt, or a prompt has no reference.
    """
    if not asked or any(reference is None for _, reference in asked):
        raise DataError(
            "--answer_rows needs held-out rows with a prompt and an answer, short enough for the "
            "context"
        )

    references = [str(reference) for _, reference in asked]
    answers = answer_greedily(
        model,
        tokenizer,
        [ids for ids, _ in asked],
        max_new_tokens=max_new_tokens,
        opening=opening,
    )
    if file is not None:
        _write_answers(file, answers, references)
    return describe_answers(answers, references)


def answer_greedily(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    opening: str = "",
) -> list[Completion]:
    """Return the likeliest answer to each prompt, the model in evaluation mode.

    Args:
        prompts: as token ids.
        max_new_tokens: longest answer.
        opening: from `answer_opening` where the prompts are conversations.
    """
    with evaluation_mode(model):
        return generate_from_ids(
            model,
            tokenizer,
            prompts,
            max_new_tokens=max_new_tokens,
            temperature=0.0,
            opening=opening,
        )


def describe_answers(answers: Sequence[Completion], references: Sequence[str]) -> dict[str, float]:
    """Return the scores of answers against their references, and how they end.

    The keys are those of `score_answers`.
    """
    # evaluate takes half a second to import, and it is needed after the training
    from hfstack.tasks.shared.text_overlap import text_overlap

    overlap = text_overlap([one.completion for one in answers], references)
    return overlap | {
        "finished_share": sum(one.finished for one in answers) / len(answers),
        "mean_answer_tokens": sum(one.tokens for one in answers) / len(answers),
        "answer_rows": len(answers),
    }


def answer_loss(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Any, *, batch_size: int = 8
) -> dict[str, float]:
    """Return the loss over all scored tokens of the rows, each token counting once.

    The Trainer averages its batches' means, so a token of a batch with few scored tokens weighs
    more there.

    Args:
        model: on its device; its mode is kept.
        tokenizer: the model's.
        rows: with `input_ids` and `labels` (IGNORED_LABEL where nothing is scored), not packed.
        batch_size: rows per forward pass.

    Returns:
        held_out_loss in nats per scored token, held_out_perplexity, and held_out_tokens, how many
        were scored.
    """
    return loss_of_rows(answer_losses(model, tokenizer, rows, batch_size=batch_size))


def loss_of_rows(losses: Sequence[tuple[float, int]]) -> dict[str, float]:
    """Return what `answer_loss` does, from the summed loss and the tokens of each row."""
    count = sum(tokens for _, tokens in losses)
    loss = math.fsum(total for total, _ in losses) / count
    return {
        "held_out_loss": loss,
        "held_out_perplexity": perplexity(loss),
        "held_out_tokens": count,
    }


def answer_losses(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Any, *, batch_size: int = 8
) -> list[tuple[float, int]]:
    """Return the summed loss in nats of each row, and how many tokens were scored.

    The arguments are those of `answer_loss`.
    """
    # longest first: rows of about one length share a batch, and a lack of memory shows at once
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]), reverse=True)
    pad_id = padding_token_id(tokenizer)
    found = [(0.0, 0)] * len(rows)

    with evaluation_mode(model), torch.no_grad():
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            batch = [rows[index] for index in places]
            ids = _stack([row["input_ids"] for row in batch], pad_id)  # (B, T)
            mask = _stack([[1] * len(row["input_ids"]) for row in batch], 0)  # (B, T)
            labels = _stack([row["labels"] for row in batch], IGNORED_LABEL)  # (B, T)

            output = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device))
            logits = output.logits[:, :-1].float()  # (B, T - 1, V)
            targets = labels[:, 1:].to(model.device)  # (B, T - 1)
            losses = cross_entropy(
                logits.transpose(1, 2), targets, reduction="none", ignore_index=IGNORED_LABEL
            )  # (B, T - 1)

            totals = losses.double().sum(1).tolist()
            counts = (targets != IGNORED_LABEL).sum(1).tolist()
            for index, *of_row in zip(places, totals, counts, strict=True):
                found[index] = (float(of_row[0]), int(of_row[1]))

    return found


def _write_answers(file: Path, answers: Sequence[Completion], references: Sequence[str]) -> None:
    with write_jsonl(file) as write:
        for one, reference in zip(answers, references, strict=True):
            write(
                {
                    "prompt": one.prompt,
                    "answer": one.completion,
                    "reference": reference,
                    "tokens": one.tokens,
                    "finished": one.finished,
                }
            )


def _stack(rows: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    """Return the rows as one tensor (B, T), filled up on the right."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])
