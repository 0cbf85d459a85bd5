"""Answer prompts given as token ids, and measure the loss of reference answers.

Prompts come as ids because a chat template has written them: putting a start token in front, as for
plain text, would be a beginning that the model was never trained on.

Legend: B rows of a batch, T tokens of the longest, V vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from hfstack.data.reading.jsonl import write_jsonl
from hfstack.errors import DataError
from hfstack.tasks.causal_lm.generate import Completion
from hfstack.tasks.causal_lm.metrics import perplexity
from hfstack.tasks.shared.text_overlap import text_overlap
from hfstack.tokens.special_tokens import end_token_ids

_IGNORED = -100


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    batch_size: int = 16,
) -> list[Completion]:
    """Return one answer for each prompt, in order, up to the end of text or turn.

    Prompts are padded on the left and masked. Sampling uses torch's global generator.

    Args:
        prompts: token ids, as a template wrote them; none is empty.
        temperature: 0 for greedy decoding.
    """
    pad = next(i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if i is not None)
    ends = end_token_ids(model, tokenizer)
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        temperature=temperature if temperature > 0 else None,
        eos_token_id=sorted(ends) or None,
        pad_token_id=pad,
    )

    answers: list[Completion] = []
    for start in range(0, len(prompts), batch_size):
        batch = [list(prompt) for prompt in prompts[start : start + batch_size]]
        width = max(map(len, batch))

        # (B, T)
        tokens = torch.tensor(
            [[pad] * (width - len(ids)) + ids for ids in batch], device=model.device
        )
        mask = torch.tensor(
            [[0] * (width - len(ids)) + [1] * len(ids) for ids in batch], device=model.device
        )

        with torch.no_grad():
            output: torch.Tensor = cast(Any, model).generate(
                input_ids=tokens, attention_mask=mask, generation_config=settings
            )

        for ids, row in zip(batch, output[:, width:].tolist(), strict=True):
            end = next((index for index, token in enumerate(row) if token in ends), None)
            text = tokenizer.decode(row[:end], skip_special_tokens=True)
            prompt = tokenizer.decode(ids, skip_special_tokens=False)
            answers.append(
                Completion(
                    str(prompt), str(text), len(row) if end is None else end + 1, end is not None
                )
            )

    return answers


def answer_pairs(
    model: PreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
) -> list[tuple[str, str]]:
    """Return (prompt, answer) pairs by greedy decoding: a look while training."""
    answers = answer(model, tokenizer, prompts, max_new_tokens=max_new_tokens)
    return [(one.prompt, one.completion) for one in answers]


def score_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[tuple[list[int], str | None]],
    *,
    max_new_tokens: int,
    file: Path | None = None,
) -> dict[str, float]:
    """Answer prompts greedily and compare with their references.

    Args:
        asked: prompts as token ids, each with its reference.
        max_new_tokens: longest answer.
        file: jsonl that gets a row for each prompt: prompt, answer, reference, tokens, finished.

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

    training = model.training
    model.eval()
    answers = answer(model, tokenizer, [ids for ids, _ in asked], max_new_tokens=max_new_tokens)
    model.train(training)
    references = [str(reference) for _, reference in asked]
    metrics = text_overlap([one.completion for one in answers], references)
    metrics["finished_share"] = sum(one.finished for one in answers) / len(answers)
    metrics["mean_answer_tokens"] = sum(one.tokens for one in answers) / len(answers)

    metrics["answer_rows"] = len(answers)
    if file is not None:
        with write_jsonl(file) as write:
            for one, reference in zip(answers, references, strict=True):
                shown = {"prompt": one.prompt, "answer": one.completion, "reference": reference}
                write(shown | {"tokens": one.tokens, "finished": one.finished})

    return metrics


def answer_loss(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Any, *, batch_size: int = 8
) -> dict[str, float]:
    """Return the loss over all scored tokens of the rows, each token counting once.

    The Trainer's mean counts batches.

    The Trainer averages its batches' means, so a token of a batch with few scored tokens weighs
    more.

    Args:
        model: on its device; its mode is kept.
        tokenizer: the model's, with a pad token.
        rows: with `input_ids` and `labels` (-100 where nothing is scored), not packed.
        batch_size: rows per forward pass.

    Returns:
        held_out_loss in nats per scored token, held_out_perplexity, and held_out_tokens, how many
        were scored.
    """
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]["input_ids"]), reverse=True)
    total, count = 0.0, 0
    pad_id = cast(int, tokenizer.pad_token_id)
    training = model.training
    model.eval()

    with torch.no_grad():
        for start in range(0, len(order), batch_size):
            batch = [rows[index] for index in order[start : start + batch_size]]
            ids = _stack([row["input_ids"] for row in batch], pad_id).to(model.device)  # (B, T)
            labels = _stack([row["labels"] for row in batch], _IGNORED).to(model.device)  # (B, T)
            mask = _stack([[1] * len(row["input_ids"]) for row in batch], 0).to(model.device)

            # (B, T - 1, V)
            logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
            targets = labels[:, 1:]
            total += cross_entropy(
                logits.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=_IGNORED
            ).item()

            count += int((targets != _IGNORED).sum())

    model.train(training)
    loss = total / count
    return {
        "held_out_loss": loss,
        "held_out_perplexity": perplexity(loss),
        "held_out_tokens": count,
    }


def _stack(rows: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])
