"""Where the numbers come from: data with fingerprints, settings, hardware, versions and the commands themselves."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from hfstack.drawing.html import Html, tag
from hfstack.drawing.numbers import counted, duration, instant, number, size
from hfstack.reporting.runs import Report

_SHOWN_FILES = 8
_COMMAND_WIDTH = 100
_OWN_SETTINGS = frozenset({"output_dir", "logging_dir", "run_name"})  # differ by nature
# Settings that a reader asks for first; the others are one click away.
_FIRST_SETTINGS = (
    "model_name_or_path", "datasets", "eval_datasets", "kind", "vocab_size", "block_size", "max_length",
    "per_device_train_batch_size", "gradient_accumulation_steps", "max_steps", "num_train_epochs", "learning_rate",
    "lr_scheduler_type", "warmup_steps", "weight_decay", "optim", "bf16", "fp16", "seed", "stride", "max_new_tokens",
    "temperature", "top_p", "top_k",
)  # fmt: skip


def data_section(reports: list[Report]) -> Html | None:
    """Every file that a run read, with size and fingerprint, and which runs read it."""
    used_by: dict[tuple[str, str], list[str]] = {}
    kept: dict[tuple[str, str], dict[str, Any]] = {}
    for report in reports:
        for source in report.record.data:
            files = source.get("files") or []
            key = (str(source.get("path")), json.dumps([file["blake2b"] for file in files]))
            kept.setdefault(key, source)
            used_by.setdefault(key, []).append(f"{report.label} ({source.get('role', 'data')})")
    if not kept:
        return None
    heads = ("Data", "Read by", "Rows", "Size", "Fingerprint")
    numeric = {"Rows", "Size"}
    head = tag(
        "tr",
        [tag("th.number" if name in numeric else "th", {"scope": "col"}, name) for name in heads],
    )
    bodies = [_source(source, list(dict.fromkeys(used_by[key]))) for key, source in kept.items()]
    caption = "Fingerprints are the first 12 digits of each file's BLAKE2b hash; two files with one hash are the same."
    return tag(
        "section.block",
        tag("div.scroll", tag("table.data", tag("thead", head), bodies)),
        tag("p.caption", caption),
    )


def changed_files(reports: list[Report]) -> list[str]:
    """Name the paths whose content was not the same in all runs that read them."""
    hashes: dict[str, set[str]] = {}
    for report in reports:
        for source in report.record.data:
            for file in source.get("files") or []:
                hashes.setdefault(file["path"], set()).add(file["blake2b"])
    return [path for path, found in hashes.items() if len(found) > 1]


def environment_section(reports: list[Report]) -> Html:
    """Hardware and versions, once for all the runs that share them."""
    groups: dict[str, list[Report]] = {}
    for report in reports:
        record = report.record
        same = [record.hardware, record.python, record.versions, record.world_size]
        groups.setdefault(json.dumps(same, sort_keys=True, default=str), []).append(report)
    blocks = [_environment(group, named=len(groups) > 1) for group in groups.values()]
    return tag("section.block.environments", blocks)


def run_section(report: Report, parents: list[Report]) -> Html:
    """One run: when, from what, the command to repeat it, and its settings."""
    record = report.record
    facts = [("Started", instant(record.started))]
    if record.duration_s is not None:
        facts.append(("Took", duration(record.duration_s)))
    if parents:
        facts.append(("Reads", ", ".join(parent.label for parent in parents)))
    if record.commit:
        facts.append(("Commit", short_commit(record.commit)))
    facts += [("Directory", record.output_dir), ("Settings hash", record.config_hash[:12])]
    files = [(name, path) for name, path in record.artifacts.items()]
    return tag(
        "section.block.run-record",
        {"id": f"run-{report.label}"},
        tag(
            "h3",
            report.label,
            tag("span.run", record.recipe) if report.label != record.recipe else None,
        ),
        tag("p.facts", [tag("span", tag("i", name), " ", value) for name, value in facts]),
        tag(
            "div.command",
            tag("pre", tag("code", wrapped_command(record.command))),
            tag("button", {"type": "button"}, "Copy"),
        ),
        _pairs(first_settings(record.settings)),
        tag(
            "details",
            tag("summary", "All settings"),
            [
                tag("div.group", tag("h5", group), _pairs(values))
                for group, values in record.settings.items()
            ],
        ),
        tag("details", tag("summary", "Files"), _pairs(dict(files))) if files else None,
    )


def short_commit(commit: str) -> str:
    """Return the first digits of a commit, and whether files differed from it."""
    sha, _, mark = commit.partition("-")
    return f"{sha[:10]}{' with local changes' if mark else ''}"


def differing_settings(group: list[Report]) -> Html | None:
    """For several runs of one recipe: the settings in which they are not the same, a column a run."""
    flat = [
        {name: v for values in r.record.settings.values() for name, v in values.items()}
        for r in group
    ]
    ordered = [
        name
        for name in dict.fromkeys(name for values in flat for name in values)
        if name not in _OWN_SETTINGS
        and any(values.get(name) != flat[0].get(name) for values in flat)
    ]
    if not ordered:
        return None
    head = tag("tr", tag("td"), [tag("th", {"scope": "col"}, report.label) for report in group])
    rows = [
        tag(
            "tr",
            tag("th", {"scope": "row"}, tag("code", name)),
            [tag("td", _value(v[name]) if name in v else "–") for v in flat],
        )
        for name in ordered
    ]
    return tag(
        "figure.table",
        tag("figcaption", tag("h4", f"{group[0].record.recipe}: settings that differ")),
        tag("div.scroll", tag("table", tag("thead", head), tag("tbody", rows))),
    )


def first_settings(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the settings worth reading first, in a fixed order, without those that are unset."""
    flat = {name: value for values in settings.values() for name, value in values.items()}
    unset = (None, "", [], -1)  # Trainer's -1 means "not given"
    return {
        name: flat[name]
        for name in _FIRST_SETTINGS
        if name in flat and flat[name] is not False and flat[name] not in unset
    }


def wrapped_command(command: str) -> str:
    """Return a long command line with an option a line, still ready to be pasted into a shell."""
    if len(command) <= _COMMAND_WIDTH:
        return command
    try:
        words = shlex.split(command)
    except ValueError:  # not written by shlex.join: leave it alone
        return command
    lines: list[list[str]] = [[]]
    for word in words:
        if word.startswith("--"):
            lines.append([])
        lines[-1].append(word)
    return " \\\n    ".join(shlex.join(line) for line in lines if line)


def _source(source: dict[str, Any], used_by: list[str]) -> Html:
    """The rows of one dataset: one for a single file, else a sum and its files."""
    files = source.get("files") or []
    rows = "–" if source.get("rows") is None else number(source["rows"])
    path = str(source.get("path"))
    alone = len(files) == 1
    total = sum(file["bytes"] for file in files)
    first = tag(
        "tr",
        tag("td.path", files[0]["path"] if alone else path),
        tag("td", ", ".join(used_by)),
        tag("td.number", rows),
        tag("td.number", size(total) if files else "–"),
        tag(
            "td",
            _short(files[0]["blake2b"]) if alone else counted(len(files), "file") if files else "–",
        ),
    )
    listed = [] if alone else files[:_SHOWN_FILES]
    lines = [
        tag(
            "tr.file",
            tag("td.path", file["path"]),
            tag("td"),
            tag("td"),
            tag("td.number", size(file["bytes"])),
            tag("td", _short(file["blake2b"])),
        )
        for file in listed
    ]
    rest = [] if alone else files[_SHOWN_FILES:]
    if rest:
        lines.append(
            tag(
                "tr.file",
                tag("td.path", f"and {counted(len(rest), 'file', more=True)}"),
                tag("td"),
                tag("td"),
                tag("td.number", size(sum(file["bytes"] for file in rest))),
                tag("td"),
            )
        )
    return tag("tbody", first, lines)


def _short(digest: str) -> Html:
    return tag("code", {"title": digest}, digest[:12])


def _environment(group: list[Report], *, named: bool) -> Html:
    """One machine and its versions."""
    record = group[0].record
    hardware = record.hardware
    accelerators = hardware.get("accelerators") or []
    counted = [f"{accelerators.count(name)} × {name}" for name in dict.fromkeys(accelerators)]
    processor = f"{hardware.get('cpu', 'unknown processor')}, {hardware.get('cores', '?')} cores"
    if hardware.get("memory_gib"):
        processor += f", {hardware['memory_gib']:.3g} GiB"
    facts = {"Processor": processor}
    if counted:
        facts["Accelerators"] = ", ".join(counted)
    facts |= {
        "Ran on": hardware.get("device", "cpu"),
        "Processes": record.world_size,
        "Python": record.python,
    }
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    heading = tag("h4", ", ".join(report.label for report in group)) if named else None
    return tag("div.environment", heading, _pairs({**facts, "Versions": versions}))


def _pairs(values: Mapping[str, Any]) -> Html:
    return tag(
        "dl.pairs",
        [tag("div", tag("dt", name), tag("dd", _value(value))) for name, value in values.items()],
    )


def _value(value: Any) -> str:
    """A setting as the command line or YAML would spell it."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(item, dict) and "path" in item for item in value):
        return ", ".join(str(item["path"]) for item in value) or "[]"
    return json.dumps(value, ensure_ascii=False, default=str)
