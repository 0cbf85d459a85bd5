"""Follow run.json to the runs behind a model, and to those that measured it."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from hfstack.disk import is_inside
from hfstack.errors import CheckpointError
from hfstack.logs import get_logger
from hfstack.reporting.runs import label_runs
from hfstack.runs.record import RUN_FILE, RunRecord, read_run
from hfstack.runs.rendering import PRETRAINING

logger = get_logger(__name__)

# Recipes that measure a model and leave it as it is. Those that apply it to somebody's texts,
# predict and explain, are none of them: their commands hold the texts, and the names of files.
_MEASURING = frozenset(
    {
        "evaluate_lm",
        "score",
        "win_rate",
        "generate",
        "diagnose",
        "bias",
        "safety",
        "compare",
        "harness",
    }
)
_SHIPPED = re.compile(
    r"/[^\s'\"=]*?/(?:_shipped/)?(recipes/(?:architectures/|chat_templates/)?[\w.-]+)"
)


@dataclass(frozen=True)
class RunLink:
    """One run: its directory, its name in the card, and its record."""

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

    @property
    def everything(self) -> list[RunLink]:
        return [*self.links, *self.evaluations]


def follow_chain(directory: Path, evaluations: list[str] | None = None) -> Chain:
    """Return the chain of a run: parents before children, each once.

    Args:
        evaluations: directories of runs that measured the model; by default those beside it that
            name it as a parent.

    Raises:
        CheckpointError: the directory holds no run, or a named evaluation does not read it.
    """
    found: dict[Path, RunRecord] = {}
    missing: list[str] = []
    seen: set[Path] = set()  # with those whose parents are being followed: a circle ends here

    def visit(folder: Path) -> None:
        if folder in seen:
            return
        seen.add(folder)
        record = read_run(folder)
        for parent in record.parents:
            place = (folder / parent).resolve()

            if any(is_inside(place / RUN_FILE, each) for each in allowed):
                if (place / RUN_FILE).is_file():
                    visit(place)
                    continue
            else:
                logger.warning(
                    "%s names %s as its parent, which lies neither beside the published run nor in "
                    "%s: it is not described; start from a folder above both if it is to be",
                    folder / RUN_FILE,
                    place,
                    Path.cwd(),
                )

            if parent not in missing:
                missing.append(parent)
        found[folder] = record

    # A record says where its parents lie, and may have come from anywhere: it must not be able to
    # carry away what another run of this machine was asked and has answered.
    last = directory.resolve()
    allowed = [last.parent, Path.cwd()] if Path.cwd() != Path("/") else [last.parent]
    visit(last)

    measured = [_read_evaluation(Path(path), last) for path in evaluations or ()]
    if not evaluations:
        measured = _find_evaluations(last)

    folders = list(dict.fromkeys([*found, *(folder for folder, _ in measured)]))
    labels = dict(zip(folders, label_runs(folders), strict=True))
    links = [RunLink(folder, labels[folder], record) for folder, record in found.items()]
    others = [RunLink(folder, labels[folder], record) for folder, record in measured]
    return Chain(links, others, missing)


def rendering_of(chain: Chain) -> dict[str, str]:
    """Return how the rows of a model were rendered, and by which recipe, or {}.

    A run without a record of its own, such as a merge, made a model that reads what the one before
    it did.
    """
    for link in reversed(chain.links):
        recipe = link.record.recipe
        if link.record.rendering:
            return {"recipe": recipe, **link.record.rendering}
        if recipe in PRETRAINING:
            return {"recipe": recipe, "form": "text"}
    return {}


def shorten_paths(text: str, chain: Chain) -> str:
    """Return a text with the paths of this machine made into ones that work elsewhere.

    The folder that holds the runs is called by its name, shipped files start at `recipes/`, and the
    home is `~`.
    """
    folders = [link.directory for link in chain.everything]
    shared = Path(os.path.commonpath([folder.parent for folder in folders]))
    if len(shared.parts) > 1:
        for spelled in {str(shared), str(Path(os.path.relpath(shared)))} - {".", ".."}:
            if Path(spelled).is_absolute():
                text = re.sub(rf"{re.escape(spelled)}(?=[/\s'\",]|$)", shared.name, text)

    text = _SHIPPED.sub(r"\1", text)
    here, home = str(Path.cwd()), str(Path.home())
    text = text.replace(f"{here}/", "") if here != "/" else text
    return text.replace(home, "~") if home != "/" else text


def _read_evaluation(folder: Path, model: Path) -> tuple[Path, RunRecord]:
    """Return a named evaluation, once it is known to have read the model."""
    record, place = read_run(folder), folder.resolve()
    if not any((place / parent).resolve() == model for parent in record.parents):
        raise CheckpointError(
            f"{folder} is a run of {record.recipe} that did not read {model}: leave it out"
        )
    return place, record


def _find_evaluations(model: Path) -> list[tuple[Path, RunRecord]]:
    """Return the finished measurements beside a run, in the order of their start."""
    found = []
    neighbours = (path for path in model.parent.iterdir() if (path / RUN_FILE).is_file())
    for folder in sorted(path for path in neighbours if path != model):
        # What is elsewhere on the disk is published when it is named, and not otherwise.
        if not is_inside(folder, model.parent):
            continue
        try:
            record = read_run(folder)
        except CheckpointError:  # a neighbour that is still going is none of our business
            continue
        first = (folder / record.parents[0]).resolve() if record.parents else None
        if record.recipe in _MEASURING and record.status == "finished" and first == model:
            found.append((folder, record))
    return sorted(found, key=lambda pair: pair[1].started)
