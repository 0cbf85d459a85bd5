"""Read training text: files, packed blocks, or what the runs behind a model name."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from hfstack.data.columns import strings_of
from hfstack.data.contamination import find_overlap, log_overlap
from hfstack.data.packing.blocks import PackedBlocks
from hfstack.data.reading.files import fingerprint
from hfstack.data.sources import Source, as_sources, describe_sources, iterate_rows
from hfstack.errors import CheckpointError, DataError
from hfstack.logs import get_logger
from hfstack.publishing.lineage import follow_chain
from hfstack.runs.run import Run

logger = get_logger(__name__)

_PACKED = "tokens.bin"
_BEHIND = "runs"


@dataclass
class TrainingTextArgs:
    """Where rows that a model is measured on are looked for."""

    training_text: list[str] = field(default_factory=list)
    """Training text in which the rows are looked for, by runs of 13 words: files, folders of rows
    or of packed blocks, or `runs` for what the runs behind the model were trained on; nothing is
    looked for by default.
    """


def check_training_text(
    run: Run,
    rows: Iterable[Any],
    places: Sequence[str],
    *,
    model: str | None,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Look for evaluation rows in training text; record and log what is found.

    Args:
        run: gets the files that are read, and the result.
        rows: texts, or rows of which every string is looked for.
        places: as `training_text` names them; nothing is looked for where they are none.
        model: whose runs are meant by `runs`.

    Raises:
        DataError: the runs behind the model name no training text that is still here.
    """
    if not places:
        return
    named = [place for place in places if place != _BEHIND]
    found = find_training_text(model) if _BEHIND in places else []
    if not found and _BEHIND in places:
        raise DataError(
            f"--training_text runs: the runs behind {model} name no training files that are still "
            "here; name the files"
        )

    everywhere = [*named, *found]
    run.record_inputs(text=describe_text(everywhere))
    overlap = find_overlap(rows, training_texts(everywhere, tokenizer))
    run.record.rows.contamination = overlap.counts()
    log_overlap(overlap)


def find_training_text(model: str | None) -> list[str]:
    """Return the files, still here, that the runs behind a model were trained on.

    Args:
        model: a run's folder; any other place has no record, and so no files.
    """
    try:
        chain = follow_chain(Path(str(model)))
    except CheckpointError:
        return []

    entries = [entry for link in chain.links for entry in link.record.data]
    files = [
        file["path"]
        for entry in entries
        if entry.get("role") == "train"
        for file in entry.get("files", [])
    ]
    there = [path for path in dict.fromkeys(files) if Path(path).is_file()]
    if gone := len(set(files)) - len(there):
        logger.warning("training text: %d of %d files are gone", gone, len(set(files)))
    return there


def describe_text(places: Sequence[str]) -> list[dict[str, Any]]:
    """Return path, files and their hashes of each place, for run.json."""
    described = []
    for place in places:
        packed = Path(place) / _PACKED
        if packed.is_file():
            described.append({"path": place, "files": [fingerprint(packed)], "rows": None})
        else:
            described += describe_sources([Source(place)])
    return described


def training_texts(
    places: Sequence[str], tokenizer: PreTrainedTokenizerBase | None = None
) -> Iterator[str]:
    """Yield the documents of training text, in constant memory.

    Args:
        places: files, globs and folders of rows, of which every string is read, and folders of
            packed blocks (`$HF_HOME/hfstack/packed/...`).
        tokenizer: the one that the blocks were packed with.

    Raises:
        DataError: a place has no rows, or its blocks are of another tokenizer.
    """
    for place in places:
        if (Path(place) / _PACKED).is_file():
            yield from _packed_texts(Path(place), tokenizer)
            continue
        for row in iterate_rows(as_sources([Source(place)])):
            yield "\n".join(strings_of(row))


def _packed_texts(folder: Path, tokenizer: PreTrainedTokenizerBase | None) -> Iterator[str]:
    """Yield the documents of a packed folder, decoded; the last may be cut off."""
    blocks = PackedBlocks(folder)
    end = blocks.counts.eos_id
    if tokenizer is None or tokenizer.eos_token_id != end:
        raise DataError(
            f"{folder} was packed with another tokenizer, whose documents end with token {end}: "
            "name the files of the training text"
        )

    ids: list[int] = []
    decode: Any = tokenizer.decode
    for place in range(len(blocks)):
        # What is no label is padding behind the last document.
        block = blocks[place]
        for token in block["input_ids"][block["labels"] >= 0].tolist():
            if token != end:
                ids.append(token)
            elif ids:
                yield decode(ids, skip_special_tokens=True)
                ids = []
    if ids:
        yield decode(ids, skip_special_tokens=True)
