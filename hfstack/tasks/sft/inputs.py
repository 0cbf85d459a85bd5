"""Load instruction rows as the settings say, and record what was read."""

from dataclasses import dataclass

from datasets import Dataset

from hfstack.data.places import FindPlaces
from hfstack.data.sources import DataArgs
from hfstack.runs.run import Run
from hfstack.tasks.sft.answers import PromptArgs
from hfstack.tasks.sft.columns import Columns, convert_rows, load_instructions


@dataclass
class SftArgs(PromptArgs):
    """How rows are read, and what is kept and measured beside the upstream settings."""

    prompt_column: str = "prompt"
    """Column that holds what is asked."""
    completion_column: str = "completion"
    """Column that holds the answer."""
    context_column: str | None = None
    """Column of further input, put below the prompt where it is not empty (`input` of instruction
    data).
    """
    as_chat: bool = True
    """Make prompt + completion a user's and an assistant's turn; off, join them as they are."""
    merge_adapter: bool = False
    """Save the whole model with the adapter merged; the adapter alone is kept in adapter/."""


def load_recorded_rows(
    run: Run, data_args: DataArgs, args: SftArgs, *models: str | None
) -> tuple[dict[str, Dataset], FindPlaces]:
    """Return the converted rows of each split, and what names them by file and line.

    Prompts with a column of their own are split by it, so that none is on both sides.

    Args:
        run: whose record gets what was read; its quarantine.jsonl gets the bad rows.
        models: folders or Hub ids that the run reads as well.

    Raises:
        DataError: the columns are others, a row cannot be used, or a resumed run would read other
            data.
    """
    columns = Columns(
        args.prompt_column, args.completion_column, args.context_column, data_args.text_column
    )
    counts = run.record.rows
    splits, find_places = load_instructions(
        data_args,
        columns,
        quarantine_file=run.output_dir / "quarantine.jsonl",
        row_counts=counts,
    )
    run.record_inputs(*models, **splits.inputs)

    rows = {
        name: convert_rows(split, columns, as_chat=args.as_chat, row_counts=counts)
        for name, split in splits.items()
    }
    return rows, find_places
