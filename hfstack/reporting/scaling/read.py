"""Read the rungs of run folders or of a table, by family, for a scaling fit."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from hfstack.data.reading.rows import OnBadRow
from hfstack.data.sources import Source, SourceLog, iterate_rows
from hfstack.errors import DataError
from hfstack.logs import get_logger
from hfstack.reporting.runs import find_runs, starting_model
from hfstack.runs.record import RUN_FILE, RunRecord, read_run
from hfstack.scaling.rungs import Rungs, make_rungs, rungs_from_rows
from hfstack.shipped import without_size

logger = get_logger(__name__)

Counted = Literal["full", "6nd", "kaplan"]

_NOT_EXCLUDED = (None, "", "0", 0, False, "false", "False")
_SIZE_METRICS = {  # what a rung's metrics call N and C, by how they are counted
    "full": ("parameters", "flops"),
    "6nd": ("parameters", "flops_6nd"),
    "kaplan": ("parameters_non_embedding", "flops_kaplan"),
}


def load_rungs(
    paths: list[str], *, counted: Counted = "full", loss: str = "eval_loss"
) -> dict[str, Rungs]:
    """Return the finished rungs under the paths, by family.

    Args:
        paths: ladders, runs of pretrain_clm that started from random weights, or folders of either,
            one or two levels down.
        counted: `full`: all parameters and the exact FLOPs; `6nd`: all parameters, 6ND; `kaplan`:
            those outside embeddings, 6ND.
        loss: the metric that is fitted.

    Raises:
        CheckpointError: a path holds no run.
        DataError: a run lacks a number, none is finished, or their losses are not of one held-out
            text.
    """
    columns: dict[str, dict[str, list[float]]] = {}
    finished: dict[Path, RunRecord] = {}
    for folder in rung_folders(paths):
        record = read_run(folder)
        if record.status != "finished":
            logger.warning("%s is %s: left out", folder, record.status)
            continue
        finished[folder] = record
        values = _rung_numbers(folder, record, counted, loss)
        own = columns.setdefault(_family(record), {name: [] for name in values})
        for name, value in values.items():
            own[name].append(value)

    if not columns:
        raise DataError(
            f"--runs {' '.join(paths)}: no rung there is finished; run scaling_ladder again to "
            "continue it"
        )
    refuse_other_measure(finished, loss=loss)
    return {family: make_rungs(**own) for family, own in columns.items()}


def refuse_other_measure(records: Mapping[Path, RunRecord], *, loss: str = "eval_loss") -> None:
    """Refuse runs whose losses cannot be compared with the first one's.

    Training data may differ, as in a ladder of repeated data; that is logged. Held-out text and
    context may not, nor may the tokenizer unless the loss is counted by bytes. A tokenizer is known
    by its tokens a byte: `bits_per_byte` over `eval_loss`.

    Raises:
        DataError: two runs differ in that.
    """
    (first, base), *rest = records.items()
    for folder, record in rest:
        same_text = _held_out_identity(record) == _held_out_identity(base)
        same_context = _block_size(record) == _block_size(base)
        same_tokens = loss == "bits_per_byte" or _same_tokens(record, base)

        for same, what in (
            (same_text, "other held-out text"),
            (same_context, "another block size"),
            (same_tokens, "other tokens"),
        ):
            if not same:
                todo = "fit them apart" + ("" if same_tokens else ", or by --loss bits_per_byte")
                raise DataError(
                    f"--runs: {folder} was measured on {what} than {first}, "
                    f"so their losses cannot be compared: {todo}"
                )

    others = [
        str(folder) for folder, record in rest if _files(record, "train") != _files(base, "train")
    ]
    if others:
        logger.warning(
            "trained on other text than %s, which a law does not account for: %s",
            first,
            ", ".join(others),
        )


def read_table(
    sources: Sequence[Source],
    *,
    parameters_column: str,
    tokens_column: str,
    loss_column: str,
    flops_column: str | None = None,
    unique_tokens_column: str | None = None,
    family_column: str | None = None,
    excluded_column: str | None = None,
    on_bad_row: OnBadRow = "fail",
    log: SourceLog | None = None,
) -> dict[str, Rungs]:
    """Return the rungs of a table, by family.

    Without a family column all are of one, named after the file.

    Args:
        sources: a CSV, JSON lines or Parquet.
        excluded_column: rows where this is neither empty nor 0 are left out.

    Raises:
        DataError: a column is missing, or a cell is not a positive number.
    """
    place = sources[0].path
    rows = list(iterate_rows(sources, on_bad_row=on_bad_row, log=log))
    for column in (family_column, excluded_column):
        if column is not None and column not in rows[0]:
            raise DataError(f"{place} has no column {column!r}; found: {', '.join(rows[0])}")
    columns = {"parameters": parameters_column, "tokens": tokens_column, "loss": loss_column}
    columns |= {"flops": flops_column} if flops_column else {}
    columns |= {"unique_tokens": unique_tokens_column} if unique_tokens_column else {}

    families: dict[str, list[dict[str, Any]]] = {}
    file_family = without_size(Path(place).name.split(".")[0])
    for row in rows:
        if excluded_column is None or row[excluded_column] in _NOT_EXCLUDED:
            family = str(row[family_column]) if family_column else file_family
            families.setdefault(family, []).append(row)
    if not families:
        raise DataError(f"{place}: every row is left out by {excluded_column!r}")
    return {family: rungs_from_rows(own, columns, place=place) for family, own in families.items()}


def rung_folders(paths: list[str]) -> list[Path]:
    """Return the folders of rungs, each once; of a ladder, all that it ever trained."""
    folders: dict[Path, Path] = {}
    for place in [found for path in paths for found in find_runs(Path(path))]:
        own = place / "rungs"
        for folder in find_runs(own) if own.is_dir() else [place]:
            folders.setdefault(folder.resolve(), folder)
    return list(folders.values())


def _rung_numbers(folder: Path, record: RunRecord, counted: Counted, loss: str) -> dict[str, float]:
    """Return what a fit needs to know of a run.

    Raises:
        DataError: a number is missing, or the run did not start from random weights.
    """
    size, flops = _SIZE_METRICS[counted]
    wanted = {
        "parameters": size,
        "tokens": "tokens",
        "loss": loss,
        "flops": flops,
        "unique_tokens": "unique_tokens",
    }

    missing = [name for name in wanted.values() if name not in record.metrics]
    if missing:
        raise DataError(
            f"{folder / RUN_FILE} ({record.recipe}) has no {', '.join(missing)}: give the ladders "
            "that scaling_ladder trained, runs of pretrain_clm with held-out text, or a CSV with "
            "--datasets"
        )

    start = starting_model(record)
    if start is not None and not start.endswith(".json"):
        raise DataError(
            f"{folder / RUN_FILE} ({record.recipe}) continued from {start}, so its tokens are not "
            "all that the model has read: leave it out"
        )
    return {name: float(record.metrics[metric]) for name, metric in wanted.items()}


def _family(record: RunRecord) -> str:
    """Return a rung's family; other runs are named after their architecture's file."""
    if "Rung" in record.settings:
        return str(record.settings["Rung"]["family"])
    return without_size(Path(starting_model(record) or record.recipe).stem)


def _files(record: RunRecord, role: str) -> list[Any]:
    """Return digests and rows of the data of a role; of the Hub, name and revision."""
    found = []
    for entry in (entry for entry in record.data if entry["role"] == role):
        hub_name = [entry["path"], *map(entry.get, ("name", "split", "revision"))]
        content = [file["blake2b"] for file in entry["files"]] or hub_name
        found.append((content, entry["rows"]))
    return found


def _held_out_identity(record: RunRecord) -> Any:
    """Return what identifies the text that the loss is measured on.

    It has files of its own, or is a share of the training rows.
    """
    data = record.settings.get("DataArgs", {})
    share = (_files(record, "train"), data.get("eval_fraction"), data.get("split_seed"))
    return _files(record, "eval") or share


def _block_size(record: RunRecord) -> Any:
    return next(
        (part["block_size"] for part in record.settings.values() if "block_size" in part), None
    )


def _same_tokens(one: RunRecord, other: RunRecord) -> bool:
    """Return whether two runs tokenize alike, as far as is known.

    Bits of a byte over nats of a token are the same for every model of a tokenizer.
    """
    if not all({"bits_per_byte", "eval_loss"} <= record.metrics.keys() for record in (one, other)):
        return True
    first, second = (
        record.metrics["bits_per_byte"] / record.metrics["eval_loss"] for record in (one, other)
    )
    return math.isclose(first, second, rel_tol=0.005)
