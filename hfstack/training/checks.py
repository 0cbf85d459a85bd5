"""Rules for what trains silently wrong; each returns a problem or None.

A rule takes plain values (a tokenizer, token ids, labels, texts, counts) and knows nothing of
recipes, so it can be asked anywhere. A recipe collects the answers and hands them to `preflight`,
which refuses to train on any problem.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import has_generation_markers, is_chat_template_stop_token_trained

from hfstack.disk import hash_text
from hfstack.errors import DataError
from hfstack.logs import get_logger
from hfstack.tokens.rendering import find_missing, shape_of
from hfstack.tokens.special_tokens import IGNORED_LABEL
from hfstack.tokens.turns import Turn

logger = get_logger(__name__)

_LIKE_CONVERSATIONS = 50  # of the same roles and keys, that are rendered to be compared
_LOSS_TOLERANCE = 1e-3  # relative; between two ways of adding up the same batch in fp32


def preflight(results: dict[str, str | None]) -> None:
    """Log in one line what was checked, and raise when a rule found a problem.

    Args:
        results: name of the rule, as a reader would say it, to its problem or None.

    Raises:
        DataError: naming every problem; each has been logged on a line of its own.
    """
    problems = {name: problem for name, problem in results.items() if problem is not None}
    logger.info("checked: %s", ", ".join(results))
    for name, problem in problems.items():
        logger.error("%s: %s", name, problem)
    if problems:
        raise DataError("; ".join(f"{name}: {problem}" for name, problem in problems.items()))


def pad_is_not_eos(tokenizer: PreTrainedTokenizerBase, end_ids: Collection[int] = ()) -> str | None:
    """Check that the pad token ends nothing.

    Padding is masked out of the loss, and an end token that pads with it: the model never learns to
    stop.

    Args:
        end_ids: further tokens that end a text or a turn, such as those of the model's generation
            settings.
    """
    pad: Any = tokenizer.pad_token_id
    if pad is None:
        return "the tokenizer has no pad token; give it one of its own"

    if pad == tokenizer.eos_token_id or pad in end_ids:
        return (
            f"the pad token {tokenizer.pad_token!r} also ends texts, so the end would be masked "
            "out of the loss; give the tokenizer a pad token of its own"
        )

    return None


def labels_reach_eos(
    labels: Iterable[Sequence[int]], end_ids: Collection[int], *, share: float = 0.1
) -> str | None:
    """Check that the end of an answer is scored, or the model never learns to stop.

    Args:
        labels: rows of labels, IGNORED_LABEL where nothing is scored.
        end_ids: tokens that end a text or a turn.
        share: the least share of the rows; what is truncated at the context has no end.
    """
    total = ended = 0
    for row in labels:
        total += 1
        ended += any(label in end_ids for label in row)

    if total and ended < share * total:
        return (
            f"only {ended} of {total} rows score a token that ends the answer, so the model will "
            "not learn to stop; put the end of the turn inside the template's generation block, or "
            "lengthen --max_length"
        )

    return None


def no_double_bos(rows: Iterable[Sequence[int]], bos_id: int | None) -> str | None:
    """Check for a doubled bos, which the model never sees when it is used.

    Args:
        rows: token ids as the model will read them.
        bos_id: the tokenizer's bos, or None when it has none.
    """
    twice = [
        number for number, row in enumerate(rows, 1) if len(row) > 1 and row[0] == row[1] == bos_id
    ]
    if bos_id is None or not twice:
        return None

    return (
        f"{len(twice)} rows, first row {twice[0]}, begin with two bos tokens; take the bos out of "
        "the text or of the chat template, since the tokenizer adds it"
    )


def some_label_is_scored(labels: Iterable[Sequence[int]]) -> str | None:
    """Check that some label of each row is scored, or its loss is 0 (trl#6668)."""
    total, masked = 0, []
    for number, row in enumerate(labels, 1):
        total += 1
        if all(label == IGNORED_LABEL for label in row):
            masked.append(number)

    if total and not masked:
        return None
    if len(masked) == total:
        return (
            f"all labels of all {total} rows are masked, so the loss would be 0; check which "
            "tokens are to be learned"
        )
    return (
        f"{len(masked)} of {total} rows, first row {masked[0]}, have no label that is scored; "
        "leave them out"
    )


def embedding_covers_tokenizer(
    embedding_rows: int, tokenizer: PreTrainedTokenizerBase
) -> str | None:
    """Check that each id has an embedding row.

    One without crashes on a CPU, and on a GPU may read another row's memory.
    """
    largest = max(tokenizer.get_vocab().values())
    if largest < embedding_rows:
        return None
    return (
        f"the tokenizer gives ids up to {largest} but the embedding has {embedding_rows} rows; "
        "resize the embedding, or use the model's own tokenizer"
    )


def template_marks_generation(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Check that the template marks the assistant's tokens, for loss on them alone."""
    template = tokenizer.chat_template
    if template is None:
        return "the tokenizer has no chat template; name one with --chat_template_path"

    if not has_generation_markers(template):
        return (
            "the chat template has no {% generation %} markers, so the assistant's tokens are "
            "unknown; add them, "
            "or train on whole conversations with --assistant_only_loss false"
        )

    if not is_chat_template_stop_token_trained(tokenizer):
        return (
            "the chat template ends the assistant's turn outside {% generation %}, so the model "
            "would not learn to "
            "stop; move the end-of-turn token inside the markers"
        )

    return None


def every_turn_is_rendered(
    conversations: Iterable[tuple[Sequence[Turn], Sequence[dict[str, Any]] | None]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    assistant_only: bool = False,
) -> str | None:
    """Check that the content of every turn stands in what the chat template renders.

    Templates pass over roles that they do not know, tools, calls and the thoughts of earlier turns,
    without an error. Conversations that the template refuses are not counted: their rows are.

    Args:
        conversations: turns with the schemas of their tools. Of those that are alike in their roles
            and keys the first ones are looked at.
        tokenizer: with the chat template that is used.
        assistant_only: the loss is on what the template marks as the assistant's.
    """
    seen: Counter[Any] = Counter()
    lost: Counter[str] = Counter()
    rows, first = 0, 0

    for number, (turns, tools) in enumerate(conversations, 1):
        shape = shape_of(turns, tools)
        seen[shape] += 1
        if seen[shape] > _LIKE_CONVERSATIONS:
            continue

        try:
            missing = find_missing(tokenizer, turns, tools, assistant_only=assistant_only)
        except DataError:
            continue
        lost.update(missing)
        rows += bool(missing)
        first = first or (number if missing else 0)

    if not rows:
        return None
    what = ", ".join(f"{count} x {name}" for name, count in lost.most_common())
    checked = sum(min(count, _LIKE_CONVERSATIONS) for count in seen.values())
    return (
        f"the chat template leaves out parts of {rows} of {checked} conversations, first row "
        f"{first}: {what}; give a template that renders them, or take them out of the rows"
    )


def train_and_eval_are_disjoint(
    train_texts: Iterable[str], eval_texts: Iterable[str]
) -> str | None:
    """Check that no train row is held out as well, comparing whole texts by hash."""
    held_out = {hash_text(text) for text in eval_texts}
    shared = sum(hash_text(text) in held_out for text in train_texts)
    if not shared:
        return None
    return (
        f"{shared} train rows are also eval rows; remove them from one side, or "
        "split the rows by --eval_fraction"
    )


def prompts_fit_context(lengths: Iterable[int], limit: int) -> str | None:
    """Check that prompts leave room in the context for an answer.

    Args:
        lengths: tokens of each prompt.
        limit: tokens that the model reads, or that training keeps.
    """
    measured = list(lengths)
    too_long = [number for number, length in enumerate(measured, 1) if length >= limit]
    if not too_long:
        return None

    return (
        f"{len(too_long)} of {len(measured)} prompts, first row {too_long[0]} with "
        f"{measured[too_long[0] - 1]} tokens, fill the limit of {limit} tokens; lengthen "
        "--max_length, or leave them out with --on_bad_row skip"
    )


def labels_in_range(labels: Iterable[int], num_labels: int) -> str | None:
    """Check that labels are in 0 .. num_labels - 1: others are undefined on a GPU."""
    wrong = [
        (number, label) for number, label in enumerate(labels, 1) if not 0 <= label < num_labels
    ]
    if not wrong:
        return None

    number, label = wrong[0]
    return (
        f"{len(wrong)} labels, first {label} in row {number}, are not among 0 .. {num_labels - 1}; "
        "set the number of labels to what the data has"
    )


def chosen_differs_from_rejected(chosen: Iterable[Any], rejected: Iterable[Any]) -> str | None:
    """Check that chosen and rejected differ.

    For equal answers the loss is a constant, and accuracy is a coin toss.
    """
    equal = [
        number
        for number, (one, other) in enumerate(zip(chosen, rejected, strict=True), 1)
        if one == other
    ]
    if not equal:
        return None
    return (
        f"{len(equal)} pairs, first row {equal[0]}, have the same answer as chosen and rejected; "
        "leave them out"
    )


def head_is_saved(saved_names: Iterable[str], head_names: Collection[str]) -> str | None:
    """Check that a reward model's new head is saved with its adapter (trl#1379).

    Otherwise it is loaded with random weights.

    Args:
        saved_names: names of the tensors that will be saved.
        head_names: module names of the head, such as `score`.
    """
    parts = {part for name in saved_names for part in name.split(".")}
    if parts & set(head_names):
        return None
    return (
        f"no tensor of the head ({', '.join(head_names)}) would be saved; add it to "
        "--lora_modules_to_save"
    )


def accumulation_keeps_loss(whole_loss: float, accumulated_loss: float) -> str | None:
    """Check that the loss of a batch is the same in parts (transformers#37766).

    Args:
        whole_loss: loss of one batch, read at once.
        accumulated_loss: loss of the same rows, read in parts.
    """
    if abs(whole_loss - accumulated_loss) <= _LOSS_TOLERANCE * max(abs(whole_loss), 1e-6):
        return None
    return (
        f"the loss of one batch is {whole_loss:.6g} at once but {accumulated_loss:.6g} in parts; "
        "divide each part by the tokens of the whole batch (num_items_in_batch)"
    )
