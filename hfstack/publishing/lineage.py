"""The runs behind a model, followed through run.json: what was read, what read it, and what measured it."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from hfstack.errors import CheckpointError
from hfstack.runs.record import RUN_FILE, RunRecord, read_run

# Recipes that measure a model and leave it as it is.
MEASURING = frozenset(
    {
        "evaluate_lm",
        "win_rate",
        "generate",
        "predict",
        "explain",
        "diagnose",
        "bias",
        "compare",
        "harness",
    }
)
_SHIPPED = re.compile(
    r"/[^\s'\"=]*?/(?:_shipped/)?(recipes/(?:architectures/|chat_templates/)?[\w.-]+)"
)


@dataclass(frozen=True)
class RunLink:
    """One run: where it lies, what it is called in the card, and its record."""

    directory: Path
    label: str
    record: RunRecord


@dataclass(frozen=True)
class Chain:
    """The published run last, before it what it came from, beside it what measured it.

    Args:
        missing: directories that a run names as its parents and that are not there any more.
    """

    links: list[RunLink]
    evaluations: list[RunLink] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @property
    def last(self) -> RunLink:
        return self.links[-1]


def follow_chain(directory: Path, evaluations: list[str] | None = None) -> Chain:
    """Return the chain of a run: parents before children, each once.

    Args:
        evaluations: directories of runs that measured the model; by default those beside it that name it as a parent.

    Raises:
        CheckpointError: the directory holds no run, or a named evaluation does not read it.
    """
    found: dict[Path, RunRecord] = {}
    missing: list[str] = []

    def visit(folder: Path) -> None:
        if folder in found:
            return
        record = read_run(folder)
        for parent in record.parents:
            place = (folder / parent).resolve()
            if (place / RUN_FILE).is_file():
                visit(place)
            elif parent not in missing:
                missing.append(parent)
        found[folder] = record

    last = directory.resolve()
    visit(last)
    measured = (
        [_measuring(Path(path), last) for path in evaluations] if evaluations else _beside(last)
    )
    labels = _labels([*found, *(folder for folder, _ in measured)])
    links = [RunLink(folder, labels[folder], record) for folder, record in found.items()]
    return Chain(
        links, [RunLink(folder, labels[folder], record) for folder, record in measured], missing
    )


def shorten_paths(text: str, chain: Chain) -> str:
    """Return a text with the paths of this machine made into ones that work elsewhere.

    The folder that holds the runs is written by its name, shipped files from `recipes/` on, and the home as `~`.
    """
    folders = [link.directory for link in [*chain.links, *chain.evaluations]]
    shared = Path(os.path.commonpath([folder.parent for folder in folders]))
    if len(shared.parts) > 1:
        for spelled in {str(shared), str(Path(os.path.relpath(shared)))} - {".", ".."}:
            if Path(spelled).is_absolute():
                text = re.sub(rf"{re.escape(spelled)}(?=[/\s'\",]|$)", shared.name, text)
    text = _SHIPPED.sub(r"\1", text)
    here, home = str(Path.cwd()), str(Path.home())
    text = text.replace(f"{here}/", "") if here != "/" else text
    return text.replace(home, "~") if home != "/" else text


def _measuring(folder: Path, model: Path) -> tuple[Path, RunRecord]:
    """A named evaluation, once it is known to have read the model."""
    record, place = read_run(folder), folder.resolve()
    if not any((place / parent).resolve() == model for parent in record.parents):
        raise CheckpointError(
            f"{folder} is a run of {record.recipe} that did not read {model}: leave it out"
        )
    return place, record


def _beside(model: Path) -> list[tuple[Path, RunRecord]]:
    """The finished measurements among the neighbours of a run, in the order in which they began."""
    found = []
    for folder in sorted(
        path for path in model.parent.iterdir() if (path / RUN_FILE).is_file() and path != model
    ):
        try:
            record = read_run(folder)
        except CheckpointError:  # a neighbour that is being written is none of our business
            continue
        first = (folder / record.parents[0]).resolve() if record.parents else None
        if record.recipe in MEASURING and record.status == "finished" and first == model:
            found.append((folder, record))
    return sorted(found, key=lambda pair: pair[1].started)


def _labels(folders: list[Path]) -> dict[Path, str]:
    """The last part of each directory's name, with the one before it where two would be the same."""
    names = [folder.name for folder in folders]
    return {f: f.name if names.count(f.name) == 1 else f"{f.parent.name}/{f.name}" for f in folders}
