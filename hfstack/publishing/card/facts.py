"""The tables of a card: the chain of runs, its data, cleaning, hardware, commands, and what nobody wrote down."""

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfstack.publishing.card.energy import estimate_kwh
from hfstack.publishing.card.metrics import Show, results, rows
from hfstack.publishing.card.sentences import Words
from hfstack.publishing.files import PublishedKind
from hfstack.publishing.lineage import Chain, RunLink, shorten_paths

_MAKES_DATA = frozenset({"demo_corpus", "clean", "preferences", "tokenizer"})
_NO_SETTING = frozenset({"output_dir", "resume_from_checkpoint", "report_to"})
_RECIPE_FILE = re.compile(r"recipes/([\w-]+)\.py")


@dataclass(frozen=True)
class Wording:
    """How numbers are written; the report's own functions, handed in because the two never import each other."""

    metric: Show
    number: Callable[[Any], str]
    size: Callable[[float], str]
    duration: Callable[[float], str]
    instant: Callable[[str], str]
    first_settings: Callable[[dict[str, dict[str, Any]]], dict[str, Any]]
    wrapped_command: Callable[[str], str]


def cell(value: Any) -> str:
    """Return a value for a Markdown table: one line, no pipe, no HTML."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;") or "–"


def base_of(chain: Chain, kind: PublishedKind) -> str | None:
    """Return the Hub id of the model that the chain began with, or None when it began with random weights."""
    if kind.base and not Path(kind.base).exists():
        return kind.base
    for link in reversed(chain.links):
        name = model_name(link)
        if (
            name
            and not name.endswith(".json")
            and not Path(name).is_dir()
            and not name.startswith((".", "/", "~"))
        ):
            inside = any(
                name.rstrip("/").rsplit("/", 1)[-1] == other.directory.name for other in chain.links
            )
            if not inside and name.count("/") <= 1:
                return name
    return None


def beginning(chain: Chain) -> str:
    """Return how a chain without a base on the Hub began."""
    drawn = any(str(model_name(link)).endswith(".json") for link in chain.links)
    return "none, it began with random weights" if drawn else "not recorded"


def model_name(link: RunLink) -> str | None:
    """Return what a run was told to start from."""
    return link.record.settings.get("ModelConfig", {}).get("model_name_or_path") or None


def chain_rows(chain: Chain, wording: Wording) -> list[list[str]]:
    """Return a row a run: name, recipe, parents, its most telling number, time and energy."""
    by_directory = {link.directory: link.label for link in chain.links}
    table = []
    for link in chain.links:
        record = link.record
        parents = [(link.directory / parent).resolve() for parent in record.parents]
        starts = ", ".join(
            by_directory.get(parent, f"{parent.name} (missing)") for parent in parents
        )
        name = model_name(link)
        if name and not any(parent.name == Path(name).name for parent in parents):
            starts = ", ".join(filter(None, [f"`{shorten_paths(name, chain)}`", starts]))
        shown = rows(results(Chain([link]))[:1], wording.metric)
        outcome = _counts(link, wording) if record.recipe in _MAKES_DATA else ""
        outcome = outcome or (f"{shown[0][0].split(' (')[0]} {shown[0][1]}" if shown else "")
        took = (
            wording.duration(record.duration_s) if record.duration_s is not None else "not recorded"
        )
        table.append(
            [link.label, record.recipe, cell(starts), cell(outcome), took, _energy([link])]
        )
    return table


def total_note(chain: Chain, wording: Wording) -> str:
    """Return time and energy of the whole chain in a sentence."""
    timed = [link for link in chain.links if link.record.duration_s is not None]
    seconds = sum(link.record.duration_s or 0.0 for link in timed)
    resumed = [link.label for link in chain.links if link.record.restarts]
    text = f"Together {wording.duration(seconds)} and about {_energy(timed)}."
    if resumed:
        text += f" Of {', '.join(resumed)}, which were stopped and resumed, only the last stretch is counted."
    return text


def data_rows(chain: Chain, words: Words, wording: Wording) -> list[list[str]]:
    """Return a row a file: path, readers, rows, size, fingerprint and licence."""
    readers: dict[tuple[str, str], list[str]] = {}
    cells: dict[tuple[str, str], list[str]] = {}
    made_by = {str(link.directory): link.label for link in chain.links}
    made_by |= {
        link.record.output_dir.rstrip("/"): link.label for link in chain.links
    }  # as its readers wrote it
    for link in [*chain.links, *chain.evaluations]:
        for entry in link.record.data:
            files = entry.get("files") or [{"path": entry["path"], "bytes": None, "blake2b": None}]
            for file in files:
                key = (str(file["path"]), str(file["blake2b"]))
                readers.setdefault(key, []).append(f"{link.label} ({entry.get('role', 'data')})")
                counted = (
                    wording.number(entry["rows"])
                    if entry.get("rows") is not None and len(files) == 1
                    else "–"
                )
                size = wording.size(file["bytes"]) if file["bytes"] is not None else "–"
                digest = f"`{file['blake2b'][:12]}`" if file["blake2b"] else _revision(entry)
                licence = _licence(str(file["path"]), words, made_by, hub=file["bytes"] is None)
                cells.setdefault(key, [counted, size, digest, licence])
    return [
        [f"`{shorten_paths(path, chain)}`", ", ".join(dict.fromkeys(readers[path, digest])), *rest]
        for (path, digest), rest in cells.items()
    ]


def cleaning_note(chain: Chain, wording: Wording) -> str:
    """Return what cleaning dropped and mended, or that no recorded run cleaned anything."""
    lines = []
    for link in chain.links:
        metrics = link.record.metrics
        if link.record.recipe != "clean":
            continue
        dropped = {
            name.removeprefix("dropped_"): v
            for name, v in metrics.items()
            if name.startswith("dropped_")
        }
        masked = {
            name.removeprefix("masked_"): v
            for name, v in metrics.items()
            if name.startswith("masked_")
        }

        def listed(counts: dict[str, float]) -> str:
            return ", ".join(
                f"{name.replace('_', ' ')} {wording.number(count)}"
                for name, count in counts.items()
            )

        text = f"Cleaning ({link.label}) read {wording.number(metrics.get('documents_in', 0))} documents and kept "
        text += f"{wording.number(metrics.get('documents_out', 0))}"
        text += f"; dropped: {listed(dropped)}" if dropped else ""
        text += f"; personal data masked: {listed(masked)}" if masked else ""
        lines.append(
            f"{text}; {wording.number(metrics.get('documents_repaired', 0))} were repaired."
        )
    return "\n".join(lines) or "No run of this chain cleaned its data."


def environments(chain: Chain) -> list[str]:
    """Return one line for each machine and set of versions, with the runs that it served."""
    groups: dict[str, list[str]] = {}
    for link in chain.links:
        record, hardware = link.record, link.record.hardware
        accelerators = hardware.get("accelerators") or []
        counted = ", ".join(
            f"{accelerators.count(name)} x {name}" for name in dict.fromkeys(accelerators)
        )
        machine = counted if counted and hardware.get("device") != "cpu" else ""
        machine = f"{machine}, " if machine else ""
        memory = f", {hardware['memory_gib']:.3g} GiB" if hardware.get("memory_gib") else ""
        processes = f"{record.world_size} process{'' if record.world_size == 1 else 'es'}"
        libraries = ", ".join(f"{name} {version}" for name, version in record.versions.items())
        text = f"{machine}{hardware.get('cpu', 'unknown processor')} with {hardware.get('cores', '?')} cores{memory}; "
        groups.setdefault(f"{text}{processes}; Python {record.python}, {libraries}", []).append(
            link.label
        )
    return [f"{', '.join(labels)}: {text}" for text, labels in groups.items()]


def commands(chain: Chain, wording: Wording) -> str:
    """Return the commands of the chain and its measurements, in order, as they work elsewhere."""
    lines = []
    for link in [*chain.links, *chain.evaluations]:
        lines.append(
            wording.wrapped_command(
                as_hfstack(shorten_paths(link.record.command, chain), link.record.world_size)
            )
        )
    return "\n".join(lines)


def as_hfstack(command: str, processes: int) -> str:
    """Return `recipes/sft.py --config recipes/sft.yaml ...` as `hfstack run sft ...`, which means the same."""
    try:
        words = shlex.split(command)
    except ValueError:
        return command
    match = _RECIPE_FILE.fullmatch(words[0]) if words else None
    if match is None:
        return command
    rest = words[1:]
    if rest[:2] == ["--config", f"recipes/{match[1]}.yaml"]:
        rest = rest[2:]
    several = ["--processes", str(processes)] if processes > 1 else []
    return shlex.join(["hfstack", "run", match[1], *several, *rest])


def missing_facts(
    chain: Chain, words: Words, data: list[list[str]], *, bias_measured: bool, has_samples: bool
) -> list[str]:
    """Return what a reader would like to know and nobody wrote down.

    Args:
        data: the rows of `data_rows`.
    """
    found = []
    if words.licence is None:
        found.append("The licence was not stated, so nobody else has a right to use it.")
    if not words.language:
        found.append("The language was not stated.")
    unknown = [row[0] for row in data if row[-1] == "not recorded"]
    if unknown:
        found.append(f"The licence of {', '.join(unknown)} was not recorded.")
    if not bias_measured:
        found.append("Whether it treats groups of people differently was not measured.")
    if chain.missing:
        found.append(
            f"Runs that it came from are gone: {', '.join(f'`{Path(path).name}`' for path in chain.missing)}."
        )
    if not any(result.low is not None for result in results(chain)):
        found.append("No metric has an interval.")
    if not has_samples:
        found.append("No samples were recorded.")
    dirty = [link.label for link in chain.links if str(link.record.commit or "").endswith("-dirty")]
    unversioned = [link.label for link in chain.links if not link.record.commit]
    if dirty:
        found.append(f"The code of {', '.join(dirty)} had local changes that are not recorded.")
    if unversioned:
        found.append(
            f"The commit of the code of {', '.join(unversioned)} was not recorded; the version was."
        )
    if not chain.last.record.outputs:
        found.append("The hashes of the files at the end of the run were not recorded.")
    return [*found, "How much energy was really used: the figures are estimates."]


def _energy(links: list[RunLink]) -> str:
    """The estimated energy in Wh or kWh."""
    kwh = sum(estimate_kwh(link.record.hardware, link.record.duration_s or 0.0) for link in links)
    return f"{kwh:.3g} kWh" if kwh >= 1 else f"{1000 * kwh:.2g} Wh"


def _counts(link: RunLink, wording: Wording) -> str:
    """What a run that makes data has made: `400 documents, 1,600 tasks`."""
    metrics = link.record.metrics
    names = {
        "documents_out": "document",
        "documents": "document",
        "train_pairs": "pair",
        "vocab_size": "token",
    }
    name = next((name for name in names if name in metrics), None)
    counted = [] if name is None else [(metrics[name], names[name])]
    if link.record.recipe == "demo_corpus":
        tasks = next(
            (
                group["instructions"]
                for group in link.record.settings.values()
                if "instructions" in group
            ),
            0,
        )
        counted += [(tasks, "task")] if tasks else []
    return ", ".join(
        f"{wording.number(count)} {one}{'' if count == 1 else 's'}" for count, one in counted
    )


def last_settings(chain: Chain, wording: Wording) -> dict[str, Any]:
    """Return the settings of the last run that are worth reading first, and those that its command names."""
    record = chain.last.record
    flat = {name: value for group in record.settings.values() for name, value in group.items()}
    named = [
        name
        for name in re.findall(r"--(\w+)", record.command)
        if name in flat and name not in _NO_SETTING
    ]
    found = wording.first_settings(record.settings) | {name: flat[name] for name in named}
    if found.get("total_episodes") or found.get("max_steps"):
        found.pop("num_train_epochs", None)  # the default, which does not count then
    return found


def _revision(entry: dict[str, Any]) -> str:
    return f"revision `{str(entry['revision'])[:10]}`" if entry.get("revision") else "not recorded"


def _licence(path: str, words: Words, made_by: dict[str, str], *, hub: bool) -> str:
    for ending, licence in words.data_licences.items():
        if path.endswith(ending):
            return licence
    for directory, label in made_by.items():
        if path.startswith(f"{directory}/") or str(Path(path).resolve()).startswith(
            f"{directory}/"
        ):
            return f"made by {label}"
    return "see its page on the Hub" if hub else "not recorded"
