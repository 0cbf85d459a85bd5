"""Train the assistant's turns alone where answers go on for several turns.

The two sides of a pair may part before their last turn: what follows holds turns of the user, or of
tools, which nobody answered with. TRL's trainers would raise or lower their probability too. A
reward model reads both sides whole, so nothing is masked there.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, cast

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hfstack.errors import ConfigError
from hfstack.logs import get_logger
from hfstack.tasks.preferences.rows import tools_of
from hfstack.tokens.chat import encode_for_generation, render_chat
from hfstack.tokens.seams import count_shared
from hfstack.tokens.special_tokens import IGNORED_LABEL

logger = get_logger(__name__)

Spans = dict[tuple[int, ...], list[tuple[int, int]]]
"""Where the turns of others begin and end in an answer, by the answer's tokens."""

_ANSWER_COLUMNS = ("chosen", "rejected", "completion")


class AnswersOnly:
    """Collates as a trainer's own collator does, and masks the turns of others.

    Args:
        collate: of TRL's DPO, KTO or ORPO trainer.
        spans: from `find_other_turns`.
    """

    def __init__(self, collate: Callable[[list[dict[str, Any]]], Any], spans: Spans) -> None:
        self.collate = collate
        self.spans = spans

    def __call__(self, examples: list[dict[str, Any]]) -> Any:
        """Return the batch; masked tokens are 0 in its masks, ignored in its labels."""
        if "chosen_labels" in examples[0]:
            return self.collate([self._mask_labels(example) for example in examples])

        batch = self.collate(examples)
        for prefix in ("", "KL_"):
            if f"{prefix}completion_mask" not in batch:
                continue
            sides = [side for side in _ANSWER_COLUMNS if f"{prefix}{side}_ids" in examples[0]]
            answers = [example[f"{prefix}{side}_ids"] for side in sides for example in examples]
            prompts = [example["prompt_ids"] for _ in sides for example in examples]
            for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
                # of a sequence that is too long one end is left
                kept = int(batch[f"{prefix}attention_mask"][row].sum())
                lost = len(prompt) + len(answer) - kept
                shift = len(prompt) - (lost if self._keeps_end() else 0)
                for start, end in self.spans.get(tuple(answer), ()):
                    begin, stop = max(0, start + shift), max(0, end + shift)
                    batch[f"{prefix}completion_mask"][row, begin:stop] = 0
        return batch

    def _keeps_end(self) -> bool:
        return getattr(self.collate, "truncation_mode", "keep_start") == "keep_end"

    def _mask_labels(self, example: dict[str, Any]) -> dict[str, Any]:
        """Return a row of ORPO whose labels leave out the turns of others."""
        masked = dict(example)
        for side in ("chosen", "rejected"):
            labels = list(example[f"{side}_labels"])
            first = next((i for i, label in enumerate(labels) if label != IGNORED_LABEL), 0)
            for start, end in self.spans.get(tuple(labels[first:]), ()):
                labels[first + start : first + end] = [IGNORED_LABEL] * (end - start)
            masked[f"{side}_labels"] = labels
        return masked


def train_answers_alone(
    trainer: Any, rows: Mapping[str, Dataset], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Give a trainer of preferences the collator that masks the turns of others.

    Where no answer holds any nothing changes.

    Args:
        trainer: TRL's DPO, KTO or ORPO trainer.
        rows: that it was given, by split, before they were rendered.
        tokenizer: with the chat template.

    Raises:
        ConfigError: the reference is computed before the first step, without the mask; or ORPO has
            truncated an answer to be masked.
    """
    spans = find_other_turns(chain.from_iterable(rows.values()), tokenizer)
    if not spans:
        return

    if getattr(trainer.args, "precompute_ref_log_probs", False):
        raise ConfigError(
            "--precompute_ref_log_probs: some answers hold turns of the user, which are masked, "
            "and TRL would not mask them there; leave it out"
        )

    trainer.data_collator = AnswersOnly(trainer.data_collator, spans)
    found = {key for key in map(tuple, _answers_in(trainer)) if key in spans}
    missing = spans.keys() - found
    if hasattr(trainer, "tokenize_row") and missing:
        raise ConfigError(
            f"{len(missing)} answers with turns of the user are longer than "
            "--max_length, so that these turns cannot be masked; raise it, or shorten the answers"
        )
    logger.info(
        "%d answers continue after turns of the user or of tools: the assistant's alone are "
        "trained",
        len(found),
    )


def find_other_turns(rows: Iterable[Any], tokenizer: PreTrainedTokenizerBase) -> Spans:
    """Return where the turns of others stand in answers that hold any.

    An answer begins as in TRL: where the prompt, rendered alone, and the whole part.

    Args:
        rows: pairs, or answers with labels.
        tokenizer: with the chat template.
    """
    spans: Spans = {}
    for row in rows:
        sides = [row[side] for side in _ANSWER_COLUMNS if side in row]
        if isinstance(row["prompt"], str) or not any(map(_has_others, sides)):
            continue

        tools = tools_of(row)
        asked = encode_for_generation(tokenizer, row["prompt"], tools)
        whole = [_render(tokenizer, [*row["prompt"], *side], tools) for side in sides]
        begin = min(count_shared(asked, ids) for ids in whole)
        for side, ids in zip(sides, whole, strict=True):
            turns = [*row["prompt"], *side]
            found = [
                (start - begin, end - begin)
                for start, end in _other_turns(turns, len(row["prompt"]), ids, tokenizer, tools)
            ]
            if found:
                spans[tuple(ids[begin:])] = found
    return spans


def _other_turns(
    turns: Sequence[dict[str, Any]],
    first: int,
    ids: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    tools: list[dict[str, Any]] | None,
) -> Iterator[tuple[int, int]]:
    """Yield where others' turns from `first` on begin, and where the next answer does."""
    index = first
    while index < len(turns):
        following = index
        while following < len(turns) and turns[following]["role"] != "assistant":
            following += 1
        if following > index:
            begin = count_shared(_render(tokenizer, turns[:index], tools), ids)
            asked = encode_for_generation(tokenizer, list(turns[:following]), tools)
            end = count_shared(asked, ids) if following < len(turns) else len(ids)
            yield begin, end
        index = following + 1


def _has_others(answer: Any) -> bool:
    return not isinstance(answer, str) and any(turn["role"] != "assistant" for turn in answer)


def _render(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
) -> list[int]:
    return list(render_chat(tokenizer, turns, tools=tools, return_dict=True)["input_ids"])


def _answers_in(trainer: Any) -> Iterator[list[int]]:
    """Yield the tokens of the answers that a trainer has made of its rows."""
    for split in (trainer.train_dataset, trainer.eval_dataset):
        for row in cast(Any, split or ()):
            for side in _ANSWER_COLUMNS:
                if f"{side}_ids" in row:
                    yield row[f"{side}_ids"]
                elif f"{side}_labels" in row:
                    yield [label for label in row[f"{side}_labels"] if label != IGNORED_LABEL]
