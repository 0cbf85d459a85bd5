"""Sentences of words with a tag each, and what a token classifier reads of them.

A word may be several tokens. Its tag stands at the first of them, the others are not scored (-100),
or carry it too. A sentence that is longer than the model reads is cut between words into windows,
so that every word is read.

Legend: N windows, T tokens of a window, B windows of a batch.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from datasets import ClassLabel, Dataset
from transformers import PreTrainedTokenizerBase

from hfstack.data.places import REFUSED, BadRows, RowProblem, refuse_rows, rows_by_line
from hfstack.data.sources import DataArgs, load_splits
from hfstack.errors import ConfigError, DataError
from hfstack.logs import get_logger
from hfstack.progress import follow
from hfstack.row_counts import RowCounts
from hfstack.tasks.token_classification.schemes import (
    Scheme,
    entities,
    entities_by_type,
    read_scheme,
    rewrite_entities,
)
from hfstack.tokens.special_tokens import IGNORED_LABEL
from hfstack.tokens.text_rows import pad_rows

logger = get_logger(__name__)

LabelPieces = Literal["first", "all"]
BadTags = Literal["fail", "repair", "keep"]

_OTHER_SPELLING = re.compile(r"[BIESLUMW][_:/].+|.+[-_:/][BIESLUMW]")
_USUAL_COLUMNS = ("tags", "ner_tags", "pos_tags", "labels")


@dataclass(frozen=True)
class Sentence:
    """The words of one row and the names of their tags.

    No tags where they are to be predicted.
    """

    words: list[str]
    tags: list[str]


@dataclass(frozen=True)
class SentenceWindow:
    """A stretch of one sentence as the model reads it."""

    sentence: int
    input_ids: list[int]  # (T,)
    words: list[int]  # (T,): the word at its first token, else -1
    labels: list[int]  # (T,): tag ids, -100 where nothing is scored


def tags_columns(named: str | None) -> tuple[str, ...]:
    """Return the columns that may hold tags: the one that was named, else the usual."""
    return _USUAL_COLUMNS if named is None else (named,)


def load_sentences(
    data_args: DataArgs,
    *,
    tokens_column: str,
    tags_column: str | None,
    tag_names: Sequence[str],
    bad_tags: BadTags,
    quarantine_file: Path,
    row_counts: RowCounts,
) -> tuple[dict[str, list[Sentence]], list[str], dict[str, list[dict[str, Any]]]]:
    """Load the sentences of each split, all tags, and what run.json says of sources.

    Equal sentences stay on one side of the split. Arguments and errors are those of
    `read_sentences`, `tag_set` and `check_tags`; rows are refused by file and line.
    """
    by_words = replace(data_args, text_column=tokens_column)
    columns = {tokens_column, *tags_columns(tags_column)}
    splits = load_splits(by_words, columns, quarantine_file=quarantine_file, row_counts=row_counts)
    sources = [*data_args.datasets, *data_args.eval_datasets]
    bad_rows = BadRows(data_args.on_bad_row, quarantine_file, row_counts)

    with rows_by_line(splits, [tokens_column], tags_columns(tags_column), sources):
        sentences = {
            name: read_sentences(
                rows,
                tokens_column=tokens_column,
                tags_column=tags_column,
                tag_names=tag_names,
                name=name,
                bad_rows=bad_rows,
            )
            for name, rows in splits.items()
        }

        names = tag_set(sentences["train"], tag_names, bad_tags=bad_tags)
        for name in sentences:
            sentences[name] = check_tags(sentences[name], names, bad_tags=bad_tags, name=name)

    return sentences, names, splits.inputs


def read_sentences(
    rows: Dataset,
    *,
    tokens_column: str,
    tags_column: str | None = None,
    tag_names: Sequence[str] = (),
    name: str,
    bad_rows: BadRows = REFUSED,
) -> list[Sentence]:
    """Return the sentences of a split, tags by name.

    Tags are names or numbers; the names of numbers are those that the column declares, or
    `tag_names` in order.

    Raises:
        DataError: a column is missing, no row is left, or `bad_rows` refuses a row that has no
            word, other than one tag a word, or a tag that has no name.
    """
    found = rows.column_names
    tags_column = next((one for one in tags_columns(tags_column) if one in found), None)

    if tokens_column not in found or tags_column is None:
        raise DataError(
            f"{name}: tagging needs a column of words ({tokens_column!r}) and one of tags "
            f"({tags_column or 'tags or ner_tags'}), found {', '.join(found)}; set "
            "--tokens_column and --tags_column"
        )

    if bad_rows.row_counts is not None:
        bad_rows.row_counts.name_columns(found, [tokens_column, tags_column])

    # What the data declares comes first: its numbers mean nothing else.
    inner: Any = getattr(rows.features[tags_column], "feature", None)
    names = list(inner.names) if isinstance(inner, ClassLabel) else list(tag_names)

    sentences: list[Sentence] = []
    problems: list[RowProblem] = []
    columns = zip(rows[tokens_column], rows[tags_column], strict=True)
    for number, (words, tags) in enumerate(columns, 1):
        try:
            checked = _checked_words(words, tokens_column)
            sentences.append(Sentence(checked, _named_tags(tags, len(checked), tags_column, names)))
        except DataError as error:
            problems.append((name, number, str(error)))

    bad_rows.settle(name, rows, problems)
    if not sentences:
        raise DataError(f"{name}: no sentence is left of {len(rows)}")
    return sentences


def _checked_words(words: Any, column: str) -> list[str]:
    """Return the words of a row, or raise DataError when there are none."""
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise DataError(f"{column} is {str(words)[:40]!r}, not a list of words")
    if not any(word.strip() for word in words):
        raise DataError("the text is empty; remove the row")
    return words


def _named_tags(tags: Any, words: int, column: str, names: Sequence[str]) -> list[str]:
    """Return the names of a row's tags; raise DataError unless each word has one."""
    if not isinstance(tags, list) or len(tags) != words:
        count = len(tags) if isinstance(tags, list) else "no list of"
        raise DataError(f"{words} words but {count} tags; each word needs one")

    kinds = {type(tag) for tag in tags}
    if len(kinds) > 1 or not kinds <= {str, int}:
        shown = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise DataError(f"column {column!r} holds {shown}; write all tags as names, or as numbers")

    return [_tag_name(tag, names) for tag in tags]


def _tag_name(tag: str | int, names: Sequence[str]) -> str:
    if isinstance(tag, str):
        if names and tag not in names:
            raise DataError(f"the tag {tag!r} is none of {', '.join(names[:10])}")
        return tag

    if not names:
        raise DataError(
            "tags are numbers without names; name them in order with --tag_names O B-person ..."
        )

    if not 0 <= tag < len(names):
        raise DataError(f"tag {tag} is outside of the {len(names)} names {', '.join(names[:10])}")

    return names[tag]


def tag_set(
    sentences: Sequence[Sentence], tag_names: Sequence[str] = (), *, bad_tags: BadTags = "fail"
) -> list[str]:
    """Return the tags in order: as named, else O first and then by type, B- before I-.

    Args:
        sentences: of the train rows.
        tag_names: in order, where rows may lack some.
        bad_tags: with "repair", what entities become is in the set too, also where the rows have no
            such tag.

    Raises:
        DataError: there is only one, or they are of no scheme that is known.
    """
    present = {tag for sentence in sentences for tag in sentence.tags}
    if len(present) < 2:
        raise DataError(
            f"all words have the tag {next(iter(present), None)!r}: there is nothing to learn"
        )

    scheme = read_scheme(sorted(present | set(tag_names)))
    _log_scheme(present | set(tag_names), scheme)
    repaired: set[str] = set()
    if bad_tags == "repair" and scheme is not None and scheme != "IOE":
        repaired = {tag for row in sentences for tag in rewrite_entities(row.tags, scheme)}

    if tag_names:
        return [*tag_names, *sorted(repaired - set(tag_names) - {"O"})]
    return sorted(
        present | repaired, key=lambda tag: (tag != "O", tag.partition("-")[2] or tag, tag)
    )


def _log_scheme(tags: set[str], scheme: Scheme | None) -> None:
    """Say how the tags are scored, and warn of entities in an unknown spelling."""
    if scheme is not None and "O" in tags:
        rule = "as conlleval does" if scheme in ("BIO", "IOE") else "strictly, as seqeval does"
        logger.info("tags are of scheme %s: whole entities are scored, %s", scheme, rule)
    elif "O" in tags and all(_OTHER_SPELLING.fullmatch(tag) for tag in tags - {"O"}):
        logger.warning(
            "tags such as %r look like parts of entities, but are scored word by word: for entity "
            "scores write them as B-PER",
            min(tags - {"O"}),
        )


def check_tags(
    sentences: list[Sentence], names: Sequence[str], *, bad_tags: BadTags, name: str
) -> list[Sentence]:
    """Refuse, repair or keep tags outside of the set, and entities that are not whole.

    In BIO those are entities that begin with I-; in schemes that mark the end, tags that belong to
    no entity with its begin and its end, which would never be scored.

    Raises:
        ConfigError: `bad_tags` is no such way.
        DataError: a tag is not in `names`, or an entity is not whole and `bad_tags` is "fail".
    """
    if bad_tags not in get_args(BadTags):
        raise ConfigError(
            f"--bad_tags is {bad_tags!r}: choose one of {', '.join(get_args(BadTags))}"
        )

    _check_known(sentences, names, name)
    scheme = read_scheme(names)
    if scheme is None or scheme == "IOE":
        return sentences

    bad_rows: list[RowProblem] = []
    problems = 0
    repaired = []
    for number, sentence in enumerate(sentences, 1):
        tags = sentence.tags
        bad = _bad_places(tags, scheme)
        problems += len(bad)
        if bad:
            before = tags[bad[0] - 1] if bad[0] else "O"
            bad_rows.append((name, number, f"{tags[bad[0]]} after {before} at word {bad[0] + 1}"))
        repaired.append(Sentence(sentence.words, rewrite_entities(tags, scheme) if bad else tags))

    if not problems:
        return sentences

    what = (
        f"{problems} entities begin with I- instead of B-"
        if scheme == "BIO"
        else f"{problems} words have tags of entities without their begin or end in {scheme}"
    )
    if bad_tags == "fail":
        effect = "makes them B-" if scheme == "BIO" else f"makes each run of a type whole {scheme}"
        refuse_rows(bad_rows, f"{what}; --bad_tags repair {effect}, keep leaves them")

    if bad_tags == "repair":
        # What train rows do not show can stand in repaired held-out rows.
        _check_known(repaired, names, f"{name}, repaired")
    ways = {"repair": "repaired", "keep": "kept" if scheme == "BIO" else "kept, and not scored"}
    first = f"{bad_rows[0][2]} of row {bad_rows[0][1]}"
    logger.warning("%s: %s, first %s: %s", name, what, first, ways[bad_tags])
    return repaired if bad_tags == "repair" else sentences


def _check_known(sentences: Sequence[Sentence], names: Sequence[str], name: str) -> None:
    """Refuse rows with a tag that is not in the set."""
    known = set(names)
    unknown = (
        (number, tag)
        for number, sentence in enumerate(sentences, 1)
        for tag in [next((tag for tag in sentence.tags if tag not in known), None)]
    )
    problems = [
        (name, number, f"the tag {tag!r} is none of the train rows'")
        for number, tag in unknown
        if tag is not None
    ]
    refuse_rows(problems, f"they have {', '.join(names)}: name what they lack with --tag_names")


def _bad_places(tags: Sequence[str], scheme: Scheme) -> list[int]:
    """Return words where a BIO entity begins with I-, or that are in no whole one."""
    if scheme == "BIO":
        return [first for _, first, _ in entities_by_type(tags) if tags[first][0] == "I"]
    inside = {word for _, first, last in entities(tags, scheme) for word in range(first, last + 1)}
    return [word for word, tag in enumerate(tags) if tag != "O" and word not in inside]


def encode_sentences(
    sentences: Sequence[Sentence],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    tag_ids: Mapping[str, int] | None = None,
    label_pieces: LabelPieces = "first",
    name: str = "rows",
) -> list[SentenceWindow]:
    """Split sentences into windows of at most `max_length` tokens, and label them.

    Special tokens are included.

    Args:
        tag_ids: the id of each tag; None leaves every label at -100.
        label_pieces: label the first token of a word, or all of them: those after a B- are then I-.

    Raises:
        ConfigError: `label_pieces` is no such way, or the tokenizer is not a fast one.
    """
    if label_pieces not in get_args(LabelPieces):
        raise ConfigError(
            f"--label_pieces is {label_pieces!r}: choose one of {', '.join(get_args(LabelPieces))}"
        )

    if not tokenizer.is_fast:
        raise ConfigError(
            f"{tokenizer.name_or_path}: words cannot be found again in its tokens; use a fast "
            "tokenizer"
        )

    before, after = surrounding_tokens(tokenizer)
    space = word_prefix(tokenizer)
    room = max_length - len(before) - len(after)
    windows: list[SentenceWindow] = []
    split = 0

    for number, sentence in enumerate(
        follow(sentences, f"encoding sentences of {name}", total=len(sentences))
    ):
        words = [f"{space}{word}" for word in sentence.words]
        encoded = tokenizer(
            words, is_split_into_words=True, add_special_tokens=False, verbose=False
        )
        pieces: list[list[int]] = [[] for _ in words]

        for token, word in zip(
            cast(list[int], encoded["input_ids"]), encoded.word_ids(), strict=True
        ):
            pieces[cast(int, word)].append(token)

        parts = _parts([piece[:room] for piece in pieces], room)
        split += len(parts) > 1

        for part in parts:
            # special tokens begin no word and are not scored
            ids, starts = [*before], [-1] * len(before)
            labels = [IGNORED_LABEL] * len(before)
            for word in part:
                fitting = pieces[word][:room]
                ids += fitting
                starts += [word, *[-1] * (len(fitting) - 1)]
                labels += _piece_labels(sentence, word, len(fitting), tag_ids, label_pieces)

            ids += after
            starts += [-1] * len(after)
            labels += [IGNORED_LABEL] * len(after)
            windows.append(SentenceWindow(number, ids, starts, labels))

    if split:
        logger.info(
            "%s: %d of %d sentences are longer than %d tokens: split between words",
            name,
            split,
            len(sentences),
            max_length,
        )

    return windows


def _parts(pieces: Sequence[Sequence[int]], room: int) -> list[list[int]]:
    """Group the words of a sentence so that each group fits; words without tokens go."""
    parts: list[list[int]] = [[]]
    used = 0

    for word, tokens in enumerate(pieces):
        if not tokens:
            continue
        if used + len(tokens) > room:
            parts.append([])
            used = 0
        parts[-1].append(word)
        used += len(tokens)

    return parts


def _piece_labels(
    sentence: Sentence,
    word: int,
    count: int,
    tag_ids: Mapping[str, int] | None,
    label_pieces: LabelPieces,
) -> list[int]:
    if tag_ids is None:
        return [IGNORED_LABEL] * count
    tag = sentence.tags[word]
    inside = f"I-{tag[2:]}" if tag.startswith("B-") else tag
    rest = tag_ids.get(inside, tag_ids[tag]) if label_pieces == "all" else IGNORED_LABEL
    return [tag_ids[tag], *[rest] * (count - 1)]


def surrounding_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the special tokens that a tokenizer puts before and after a text."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    ids = cast(list[int], encoded["input_ids"])
    special = cast(list[int], encoded["special_tokens_mask"])
    first = special.index(0)
    last = len(special) - special[::-1].index(0)
    return ids[:first], ids[last:]


def word_prefix(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return what must precede a word given alone: the space that its token includes."""
    alone, second = tokenizer.tokenize("a")[0], tokenizer.tokenize("a a")[-1]
    return " " if alone != second and not second.startswith("##") else ""


def collate_sentences(
    rows: Sequence[Mapping[str, Any]], *, pad_token_id: int
) -> dict[str, torch.Tensor]:
    """Pad windows to the longest: ids, `attention_mask` and `labels`, each (B, T)."""
    batch = pad_rows([{"input_ids": row["input_ids"]} for row in rows], pad_token_id=pad_token_id)
    batch["labels"] = torch.full_like(batch["input_ids"], IGNORED_LABEL)
    for index, row in enumerate(rows):
        batch["labels"][index, : len(row["labels"])] = torch.as_tensor(row["labels"])
    return batch


def as_tag_dataset(windows: Sequence[SentenceWindow]) -> Dataset:
    """Return what the Trainer reads: `input_ids`, `labels`, and `length` to batch by."""
    return Dataset.from_dict(
        {
            "input_ids": [window.input_ids for window in windows],
            "labels": [window.labels for window in windows],
            "length": [len(window.input_ids) for window in windows],
        }
    )
