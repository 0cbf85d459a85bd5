"""Collect the facts of a card from run.json: chain, data, hardware and commands."""

import dataclasses
import json
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hfstack.data.contamination import Overlap
from hfstack.drawing.measures import REINFORCED
from hfstack.drawing.numbers import counted, duration, number, size
from hfstack.publishing.card.author import AuthorFacts
from hfstack.publishing.card.energy import estimate_kwh
from hfstack.publishing.card.markdown import Markdown, code, escape
from hfstack.publishing.card.metrics import NOT_RECORDED, evaluated_on, list_results, tabulate
from hfstack.publishing.files import PublishedKind
from hfstack.publishing.lineage import Chain, RunLink, shorten_paths
from hfstack.reporting.provenance import (
    count_accelerators,
    first_settings,
    format_setting,
    wrapped_command,
)
from hfstack.reporting.runs import flatten_settings, starting_model

_MAKES_DATA = frozenset({"demo_corpus", "clean", "preferences", "tokenizer"})
_NO_SETTING = frozenset({"output_dir", "resume_from_checkpoint", "report_to"})
_RECIPE_FILE = re.compile(r"recipes/([\w-]+)\.py")


def format_energy(kwh: float) -> str:
    """Return an energy in Wh or kWh."""
    return f"{kwh:.3g} kWh" if kwh >= 1 else f"{1000 * kwh:.2g} Wh"


def find_base(chain: Chain, kind: PublishedKind) -> str | None:
    """Return the Hub id of the model that the chain began with, or None without one."""
    if kind.base and not Path(kind.base).exists():
        return kind.base

    folders = {link.directory.name for link in chain.links}
    for link in reversed(chain.links):
        name = starting_model(link.record)
        if not name or name.endswith(".json") or Path(name).is_dir():
            continue
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            continue
        if name.rstrip("/").rsplit("/", 1)[-1] not in folders:
            return name
    return None


def was_newly_initialised(chain: Chain) -> bool:
    """Return whether a run of the chain began with random weights, from a config.json."""
    return any(str(starting_model(link.record)).endswith(".json") for link in chain.links)


def list_chain(chain: Chain) -> list[list[str]]:
    """Return a row a run: name, recipe, parents, outcome, time and energy."""
    by_directory = {link.directory: link.label for link in chain.links}
    table = []
    for link in chain.links:
        record = link.record

        # what it starts from: its parents, and a model that is none of them
        parents = [(link.directory / parent).resolve() for parent in record.parents]
        starts = [str(escape(by_directory.get(path, f"{path.name} (missing)"))) for path in parents]
        name = starting_model(record)
        if name and not any(parent.name == Path(name).name for parent in parents):
            starts.insert(0, code(shorten_paths(name, chain)))

        took = NOT_RECORDED if record.duration_s is None else duration(record.duration_s)
        outcome, energy = _outcome(link), format_energy(_used_kwh([link]))
        starting = Markdown(", ".join(starts))
        table.append([link.label, record.recipe, starting, outcome, took, energy])
    return table


def total_use(chain: Chain) -> dict[str, Any]:
    """Return time and energy of the whole chain, and the runs that were resumed."""
    timed = [link for link in chain.links if link.record.duration_s is not None]
    return {
        "duration_s": sum(link.record.duration_s or 0.0 for link in timed),
        "kwh": _used_kwh(timed),
        "resumed": [link.label for link in chain.links if link.record.restarts],
    }


def list_data(chain: Chain, author: AuthorFacts) -> list[list[str]]:
    """Return a row a file: path, readers, rows, size, digest and licence."""
    # A run's folder is named in two ways: as it is now, and as its readers recorded it.
    made_by = {str(link.directory): link.label for link in chain.links}
    made_by |= {link.record.output_dir.rstrip("/"): link.label for link in chain.links}

    readers: dict[tuple[str, str], list[str]] = {}
    cells: dict[tuple[str, str], list[str]] = {}
    for link in chain.everything:
        for entry in link.record.data:
            files = entry.get("files") or [{"path": entry["path"], "bytes": None, "blake2b": None}]
            for file in files:
                path, digest = str(file["path"]), file["blake2b"]
                key = path, str(digest)
                readers.setdefault(key, []).append(f"{link.label} ({entry.get('role', 'data')})")

                known_rows = entry.get("rows") is not None and len(files) == 1
                rows = number(entry["rows"]) if known_rows else "–"
                on_hub = file["bytes"] is None
                length = "–" if on_hub else size(file["bytes"])
                version = code(digest[:12]) if digest else _hub_revision(entry)
                licence = _licence(path, author, made_by, on_hub=on_hub)
                cells.setdefault(key, [rows, length, version, licence])

    return [
        [code(shorten_paths(key[0], chain)), ", ".join(dict.fromkeys(readers[key])), *rest]
        for key, rest in cells.items()
    ]


def list_cleaning(chain: Chain) -> list[dict[str, Any]]:
    """Return the counts of each run that cleaned data."""
    found = []
    for link in chain.links:
        metrics = link.record.metrics
        if link.record.recipe == "clean":
            numbers = {
                "label": link.label,
                "documents_in": metrics.get("documents_in", 0),
                "documents_out": metrics.get("documents_out", 0),
                "repaired": metrics.get("documents_repaired", 0),
                "dropped": _with_prefix(metrics, "dropped_"),
                "masked": _with_prefix(metrics, "masked_"),
            }
            found.append(numbers)
    return found


def list_contamination(chain: Chain) -> list[tuple[str, str]]:
    """Return how many rows that a run evaluates on stand in its training text."""
    known = {field.name for field in dataclasses.fields(Overlap)}
    found = []
    for link in chain.everything:
        counts = link.record.rows.contamination
        if counts:
            overlap = Overlap()
            for name in known & counts.keys():
                setattr(overlap, name, counts[name])
            found.append((link.label, overlap.sentence()))
    return found


def format_counts(counts: dict[str, float]) -> str:
    """Return counts by name in a line, as `too short 30, exact 2`."""
    return ", ".join(f"{name.replace('_', ' ')} {number(count)}" for name, count in counts.items())


def list_environments(chain: Chain) -> list[dict[str, Any]]:
    """Return each machine and set of versions, once, with the runs that it served."""
    groups: dict[str, dict[str, Any]] = {}
    for link in chain.links:
        record, hardware = link.record, link.record.hardware
        on_accelerator = hardware.get("device") != "cpu"

        environment = {
            "accelerators": count_accelerators(hardware) if on_accelerator else "",
            "cpu": hardware.get("cpu", "unknown processor"),
            "cores": hardware.get("cores", "?"),
            "memory_gib": hardware.get("memory_gib"),
            "processes": record.world_size,
            "python": record.python,
            "libraries": ", ".join(f"{name} {text}" for name, text in record.versions.items()),
        }
        key = json.dumps(environment, default=str)
        groups.setdefault(key, environment | {"labels": []})["labels"].append(link.label)
    return list(groups.values())


def list_measurements(chain: Chain) -> list[dict[str, Any]]:
    """Return what each result was measured on, against which model, and who judged."""
    found = []
    for link in [*chain.evaluations, chain.last]:
        name, settings = evaluated_on(link)[0], flatten_settings(link.record)
        reference, judge = settings.get("reference_model"), settings.get("reward_model")
        measurement = {
            "label": link.label,
            "data": name if name != NOT_RECORDED else None,
            "reference": reference and shorten_paths(str(reference), chain),
            "judge": judge and shorten_paths(str(judge), chain),
            "reinforced": link.record.recipe in REINFORCED,
        }
        found.append(measurement)
    return found


def list_commands(chain: Chain) -> str:
    """Return the commands of the chain and its measurements, as they work elsewhere."""
    lines = []
    for link in chain.everything:
        command = shorten_paths(link.record.command, chain)
        lines.append(wrapped_command(as_hfstack(command, link.record.world_size)))
    return "\n".join(lines)


def as_hfstack(command: str, processes: int) -> str:
    """Return `recipes/sft.py --config recipes/sft.yaml ...` as `hfstack run sft ...`."""
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


def list_missing(chain: Chain, data: list[list[str]]) -> dict[str, Any]:
    """Return what a reader would like to know and nobody recorded.

    Args:
        data: the rows of `list_data`.
    """
    commits = {link.label: str(link.record.commit or "") for link in chain.links}
    return {
        "data_licences": [row[0] for row in data if row[-1] == NOT_RECORDED],
        "runs": [Path(path).name for path in chain.missing],
        "intervals": all(result.low is None for result in list_results(chain)),
        "local_changes": [label for label, sha in commits.items() if sha.endswith("-dirty")],
        "commits": [label for label, sha in commits.items() if not sha],
        "hashes": not chain.last.record.outputs,
    }


def last_settings(chain: Chain) -> dict[str, str]:
    """Return the last run's settings that are worth reading first or in its command."""
    record = chain.last.record
    flat = flatten_settings(record)
    named = [
        name
        for name in re.findall(r"--(\w+)", record.command)
        if name in flat and name not in _NO_SETTING
    ]
    found = first_settings(record.settings) | {name: flat[name] for name in named}

    # Epochs are the default, which does not count when steps or episodes are given.
    if found.get("total_episodes") or found.get("max_steps"):
        found.pop("num_train_epochs", None)
    return {
        name: shorten_paths(format_setting(value), chain) or "–" for name, value in found.items()
    }


def _used_kwh(links: Iterable[RunLink]) -> float:
    """Return the estimated energy of some runs."""
    return sum(estimate_kwh(link.record.hardware, link.record.duration_s or 0.0) for link in links)


def _outcome(link: RunLink) -> str:
    """Return the most telling number of a run; of one that makes data, how much."""
    if link.record.recipe in _MAKES_DATA and (made := _count_made(link)):
        return made
    best = tabulate(list_results(Chain([link]))[:1])
    return f"{best[0][0].split(' (')[0]} {best[0][1]}" if best else ""


def _count_made(link: RunLink) -> str:
    """Return what a run that makes data has made: `400 documents, 1,600 tasks`."""
    metrics, settings = link.record.metrics, flatten_settings(link.record)
    names = {
        "documents_out": "document",
        "documents": "document",
        "train_pairs": "pair",
        "vocab_size": "token",
    }
    made = [counted(int(metrics[name]), noun) for name, noun in names.items() if name in metrics][
        :1
    ]
    if link.record.recipe == "demo_corpus" and settings.get("instructions"):
        made.append(counted(settings["instructions"], "task"))
    return ", ".join(made)


def _with_prefix(metrics: dict[str, float], prefix: str) -> dict[str, float]:
    return {
        name.removeprefix(prefix): value
        for name, value in metrics.items()
        if name.startswith(prefix)
    }


def _hub_revision(entry: dict[str, Any]) -> str:
    revision = entry.get("revision")
    return Markdown(f"revision {code(str(revision)[:10])}") if revision else NOT_RECORDED


def _licence(path: str, author: AuthorFacts, made_by: dict[str, str], *, on_hub: bool) -> str:
    """Return the licence of a data file, or where it comes from."""
    for ending, licence in author.data_licences.items():
        if path.endswith(ending):
            return licence
    for directory, label in made_by.items():
        inside = f"{directory}/"
        if path.startswith(inside) or str(Path(path).resolve()).startswith(inside):
            return f"made by {label}"
    return "see its page on the Hub" if on_hub else NOT_RECORDED
