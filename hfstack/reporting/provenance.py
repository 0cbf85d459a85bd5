"""Show where numbers come from: data, settings, hardware, versions, commands."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from hfstack.drawing.html import Html, tag
from hfstack.drawing.numbers import counted, duration, instant, number, size
from hfstack.reporting.runs import Report, flatten_settings

_SHOWN_FILES = 8
_COMMAND_WIDTH = 100
_OWN_SETTINGS = frozenset({"output_dir", "logging_dir", "run_name"})  # differ by nature
# Settings that a reader asks for first; the others are one click away.
_FIRST_SETTINGS = (
    *("model_name_or_path", "datasets", "eval_datasets", "kind"),
    *("vocab_size", "block_size", "max_length"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "max_steps"),
    *("num_train_epochs", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay"),
    *("optim", "bf16", "fp16", "seed"),
    *("stride", "max_new_tokens", "temperature", "top_p", "top_k"),
)


def data_section(reports: list[Report]) -> Html | None:
    """Return every file that was read, with its fingerprint, and which runs read it."""
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

    columns = {"Data": "th", "Read by": "th", "Rows": "th.number", "Size": "th.number"}
    columns["Fingerprint"] = "th"
    head = tag("tr", [tag(cell, {"scope": "col"}, name) for name, cell in columns.items()])
    bodies = [_data_rows(source, list(dict.fromkeys(used_by[key]))) for key, source in kept.items()]
    caption = (
        "Fingerprints are the first 12 digits of each file's BLAKE2b hash; "
        "two files with one hash are the same."
    )
    return tag(
        "section.block",
        tag("div.scroll", tag("table.data", tag("thead", head), bodies)),
        tag("p.caption", caption),
    )


def changed_data_paths(reports: list[Report]) -> list[str]:
    """Return the paths whose content was not the same in all runs that read them."""
    hashes: dict[str, set[str]] = {}
    for report in reports:
        for source in report.record.data:
            for file in source.get("files") or []:
                hashes.setdefault(file["path"], set()).add(file["blake2b"])
    return [path for path, found in hashes.items() if len(found) > 1]


def environment_section(reports: list[Report]) -> Html:
    """Return hardware and versions, once for all the runs that share them."""
    groups: dict[str, list[Report]] = {}
    for report in reports:
        record = report.record
        same = [record.hardware, record.python, record.versions, record.world_size]
        groups.setdefault(json.dumps(same, sort_keys=True, default=str), []).append(report)
    blocks = [_environment(group, named=len(groups) > 1) for group in groups.values()]
    return tag("section.block.environments", blocks)


def run_section(report: Report, parents: list[Report]) -> Html:
    """Return one run: when, from what, the command to repeat it, and its settings."""
    record = report.record

    # when, from what, where
    facts = [("Started", instant(record.started))]
    if record.duration_s is not None:
        facts.append(("Took", duration(record.duration_s)))
    if parents:
        facts.append(("Reads", ", ".join(parent.label for parent in parents)))
    if record.commit:
        facts.append(("Commit", short_commit(record.commit)))
    facts += [("Directory", record.output_dir), ("Settings hash", record.config_hash[:12])]

    # the command, and everything else behind a click
    recipe = tag("span.run", record.recipe) if report.label != record.recipe else None
    command = tag("pre", tag("code", wrapped_command(record.command)))
    groups = [
        tag("div.group", tag("h5", group), _name_value_list(values))
        for group, values in record.settings.items()
    ]
    files = None
    if record.artifacts:
        files = tag("details", tag("summary", "Files"), _name_value_list(record.artifacts))

    return tag(
        "section.block.run-record",
        {"id": f"run-{report.label}"},
        tag("h3", report.label, recipe),
        tag("p.facts", [tag("span", tag("i", name), " ", value) for name, value in facts]),
        tag("div.command", command, tag("button", {"type": "button"}, "Copy")),
        _name_value_list(first_settings(record.settings)),
        tag("details", tag("summary", "All settings"), groups),
        files,
    )


def short_commit(commit: str) -> str:
    """Return the first digits of a commit, and whether files differed from it."""
    sha, _, mark = commit.partition("-")
    return f"{sha[:10]}{' with local changes' if mark else ''}"


def differing_settings(group: list[Report]) -> Html | None:
    """Return the settings in which runs of one recipe differ, a column a run."""
    flat = [flatten_settings(report.record) for report in group]
    differing = [
        name
        for name in dict.fromkeys(name for values in flat for name in values)
        if name not in _OWN_SETTINGS
        and any(values.get(name) != flat[0].get(name) for values in flat)
    ]
    if not differing:
        return None

    head = tag("tr", tag("td"), [tag("th", {"scope": "col"}, report.label) for report in group])
    rows = []
    for name in differing:
        heading = tag("th", {"scope": "row"}, tag("code", name))
        cells = [format_setting(values[name]) if name in values else "–" for values in flat]
        rows.append(tag("tr", heading, [tag("td", cell) for cell in cells]))
    return tag(
        "figure.table",
        tag("figcaption", tag("h4", f"{group[0].record.recipe}: settings that differ")),
        tag("div.scroll", tag("table", tag("thead", head), tag("tbody", rows))),
    )


def first_settings(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the settings worth reading first, without those that are unset."""
    flat = {name: value for values in settings.values() for name, value in values.items()}
    unset = (None, "", [], -1)  # Trainer's -1 means "not given"
    return {
        name: flat[name]
        for name in _FIRST_SETTINGS
        if name in flat and flat[name] is not False and flat[name] not in unset
    }


def wrapped_command(command: str) -> str:
    """Return a long command with an option a line, ready to be pasted into a shell."""
    if len(command) <= _COMMAND_WIDTH:
        return command
    try:
        words = shlex.split(command)
    except ValueError:  # not made by shlex.join: leave it alone
        return command

    lines: list[list[str]] = [[]]
    for word in words:
        if word.startswith("--"):
            lines.append([])
        lines[-1].append(word)
    return " \\\n    ".join(shlex.join(line) for line in lines if line)


def _data_rows(source: dict[str, Any], used_by: list[str]) -> Html:
    """Return the rows of one dataset: one for a single file, else a sum and its files."""
    files = source.get("files") or []
    rows = "–" if source.get("rows") is None else number(source["rows"])
    total = size(sum(file["bytes"] for file in files)) if files else "–"
    if len(files) == 1:
        path, digest = files[0]["path"], _short_digest(files[0]["blake2b"])
        listed = []
    else:
        path, digest = str(source.get("path")), counted(len(files), "file") if files else "–"
        listed = files
    cells = [("td.path", path), ("td", ", ".join(used_by)), ("td.number", rows)]
    cells += [("td.number", total), ("td", digest)]
    lines = [tag("tr", [tag(cell, content) for cell, content in cells])]

    shown, rest = listed[:_SHOWN_FILES], listed[_SHOWN_FILES:]
    lines += [
        _file_row(file["path"], file["bytes"], _short_digest(file["blake2b"])) for file in shown
    ]
    if rest:
        more = f"and {counted(len(rest), 'file', more=True)}"
        lines.append(_file_row(more, sum(file["bytes"] for file in rest), None))
    return tag("tbody", lines)


def _file_row(path: str, count_bytes: int, digest: Html | None) -> Html:
    """Return one file of a dataset of several, without readers and rows of its own."""
    length = tag("td.number", size(count_bytes))
    return tag("tr.file", tag("td.path", path), tag("td"), tag("td"), length, tag("td", digest))


def _short_digest(digest: str) -> Html:
    return tag("code", {"title": digest}, digest[:12])


def _environment(group: list[Report], *, named: bool) -> Html:
    """Return one machine and its versions."""
    record = group[0].record
    hardware = record.hardware
    processor = f"{hardware.get('cpu', 'unknown processor')}, {hardware.get('cores', '?')} cores"
    if hardware.get("memory_gib"):
        processor += f", {hardware['memory_gib']:.3g} GiB"

    facts = {"Processor": processor}
    if accelerators := count_accelerators(hardware):
        facts["Accelerators"] = accelerators
    facts |= {
        "Ran on": hardware.get("device", "cpu"),
        "Processes": record.world_size,
        "Python": record.python,
        "Versions": ", ".join(f"{name} {version}" for name, version in record.versions.items()),
    }
    heading = tag("h4", ", ".join(report.label for report in group)) if named else None
    return tag("div.environment", heading, _name_value_list(facts))


def count_accelerators(hardware: Mapping[str, Any]) -> str:
    """Return accelerators of run.json's hardware, as `8 × NVIDIA H100`; "" if none."""
    names = hardware.get("accelerators") or []
    return ", ".join(f"{names.count(name)} × {name}" for name in dict.fromkeys(names))


def _name_value_list(values: Mapping[str, Any]) -> Html:
    pairs = [
        tag("div", tag("dt", name), tag("dd", format_setting(value)))
        for name, value in values.items()
    ]
    return tag("dl.pairs", pairs)


def format_setting(value: Any) -> str:
    """Return a setting as the command line would spell it; of datasets, their paths."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(item, dict) and "path" in item for item in value):
        return ", ".join(str(item["path"]) for item in value) or "[]"
    return json.dumps(value, ensure_ascii=False, default=str)
