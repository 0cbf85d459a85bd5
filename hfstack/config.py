"""Read a recipe's settings, strictly, from a YAML file and the command line.

    def main(model_args: ModelConfig, training_args: SFTConfig) -> dict[str, float]: ...

    if __name__ == "__main__":
        command_line(main)

The type hints of `main` are the whole declaration. `--config file.yaml` gives values, `--key value`
overrides them. YAML values are turned into flags and placed in front of the command line's own, so
one argparse parser judges the names, types and choices of both. A field's help is the string
under it, or its `metadata["help"]`, as upstream does.
"""

import dataclasses
import enum
import inspect
import itertools
import json
import re
import sys
import types
import typing
from argparse import Action, ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Collection
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from transformers import HfArgumentParser

from hfstack import bounded_yaml, data_settings
from hfstack.errors import (
    AlreadyFinished,
    ConfigError,
    ExamplesShown,
    HfstackError,
    Preempted,
)
from hfstack.field_help import document_fields
from hfstack.hints import suggest
from hfstack.logs import get_logger, is_reader_gone, redact_tracebacks, setup_logging, shorten
from hfstack.machine_failures import describe_failure
from hfstack.packages import refuse_missing_packages
from hfstack.places import expand_places
from hfstack.ranges import refuse_out_of_range
from hfstack.redaction import redact
from hfstack.upstream_defaults import (
    hide_progress_bars,
    refuse_remote_code,
    shorten_load_reports,
    turn_telemetry_off,
)
from hfstack.yaml_options import read_options

EXIT_USER_MISTAKE = 1
EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: try again later
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it

_SHOW_HELP = "print so many rows as training reads them, the trained part marked, and end"
_RENAMED = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
_ALLOW_CHANGED_HELP = (
    "settings, files (or recipe, its code) that a resumed run may change, as a refusal names them"
)

logger = get_logger(__name__)


def allowed_changes(argv: list[str] | None = None) -> frozenset[str]:
    """Return the settings that `--allow_changed` lets a resumed run change.

    Args:
        argv: flags, by default `sys.argv[1:]`.
    """
    return frozenset(_read_own_flags(argv)[0].allow_changed)


def examples_to_show(argv: list[str] | None = None) -> int:
    """Return how many rows `--show` asks for; 0 when the run is to train.

    Args:
        argv: flags, by default `sys.argv[1:]`.
    """
    return _read_own_flags(argv)[0].show


def command_line(main: Callable[..., Any]) -> None:
    """Fill `main`'s parameters from the command line, call it, and exit with a code.

    Exits with 0 when the recipe is done (or was done before), 1 after one line on stderr for a
    user's mistake or a failure of the machine, 75 when the process was asked to stop. Any other
    exception is a bug and keeps its traceback.
    """
    setup_logging()
    redact_tracebacks()
    turn_telemetry_off()
    shorten_load_reports()
    # In a log file a progress bar is thousands of lines.
    if not sys.stderr.isatty():
        hide_progress_bars()

    name = Path(sys.argv[0]).name
    try:
        hints = typing.get_type_hints(main)
        classes = [hints[parameter] for parameter in inspect.signature(main).parameters]
        main(*parse(*classes))
    except ExamplesShown as shown:
        print(shown)  # noqa: T201
    except AlreadyFinished as done:
        print(f"{name}: {done}", file=sys.stderr)  # noqa: T201 - this is the command line
    except Preempted as stop:
        print(f"{name}: {stop}", file=sys.stderr)  # noqa: T201
        sys.exit(EXIT_PREEMPTED)
    except KeyboardInterrupt:
        # There is no run yet to mark as preempted.
        print(f"{name}: stopped before the run began", file=sys.stderr)  # noqa: T201
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        if not is_reader_gone():
            raise
        sys.exit(EXIT_USER_MISTAKE)
    except Exception as error:
        # What fails of the machine outside of a run, whose own end says it otherwise.
        said = str(error) if isinstance(error, HfstackError) else describe_failure(error)
        if said is None:
            raise
        line = redact(f"{name}: {' '.join(said.split())}")
        print(shorten(line), file=sys.stderr)  # noqa: T201
        sys.exit(EXIT_USER_MISTAKE)


def parse(*dataclass_types: Any, argv: list[str] | None = None) -> tuple[Any, ...]:
    """Return one instance of each dataclass, from `--config FILE` and flags.

    Args:
        dataclass_types: the classes; their fields share one flat namespace of options.
        argv: flags, by default `sys.argv[1:]`.

    Raises:
        ConfigError: an option is unknown, mistyped, not among its choices, or refused by its class.
            The message names the YAML file and line when the value came from there.
    """
    known, flags = _read_own_flags(argv)
    if len(known.config) > 1:
        raise ConfigError(f"--config may be given once, got {', '.join(map(str, known.config))}")

    for flag in flags:
        if not flag.isascii() and flag.encode(errors="replace").decode() != flag:
            raise ConfigError(f"{ascii(flag)[:60]} is no text in UTF-8: nothing could record it")

    parser, hints = build_parser(*dataclass_types)
    entries = _read_yaml(known.config[0], parser, hints, flags) if known.config else {}
    yaml_flags = list(itertools.chain.from_iterable(entry.flags for entry in entries.values()))

    namespace, unknown = parser.parse_known_args([*yaml_flags, *flags])
    if unknown:
        option = unknown[0].split("=")[0]
        label = "unknown option" if option.startswith("-") else "unexpected value"
        raise ConfigError(
            f"{label} {suggest(option, [f'--{name}' for name in hints])} (--help lists every "
            "option)"
        )

    # What was given decides which defaults may still be chosen; --no_x gives x as well.
    values = vars(namespace)
    flagged = {
        flag.lstrip("-").split("=")[0].replace("-", "_") for flag in flags if flag.startswith("--")
    }
    named = flagged | set(entries)
    given = named | {name.removeprefix("no_") for name in named}

    if values.get("hub_token") is not None:
        raise ConfigError(
            "hub_token is refused, because settings are written to disk: use HF_TOKEN or `hf auth "
            "login`"
        )
    refuse_remote_code(values)
    refuse_missing_packages(values)
    expand_places(values)

    places = {name: entry.place for name, entry in entries.items() if name not in flagged}
    refuse_out_of_range(values, places)
    _resolve_renamed(values, flagged)
    _resolve_hardware(values, given)
    return tuple(_build_settings(cls, values) for cls in dataclass_types)


def _read_own_flags(argv: list[str] | None) -> tuple[Namespace, list[str]]:
    """Return the two flags that every recipe has, and the flags that are left."""
    parser = _StrictParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path, action="append", default=[])
    parser.add_argument("--allow_changed", nargs="+", action="extend", default=[])
    parser.add_argument("--show", type=int, default=0)
    return parser.parse_known_args(sys.argv[1:] if argv is None else argv)


def build_parser(*dataclass_types: Any) -> tuple[ArgumentParser, dict[str, Any]]:
    """Return the parser of these dataclasses and the type hint of each option.

    The reference page is made from it.
    """
    for cls in dataclass_types:
        document_fields(cls)
    parser = _StrictParser(dataclass_types, allow_abbrev=False)
    parser.add_argument(
        "--config", type=Path, help="YAML file of option: value; the command line's own flags win"
    )

    parser.add_argument("--allow_changed", nargs="+", metavar="NAME", help=_ALLOW_CHANGED_HELP)
    parser.add_argument("--show", type=int, metavar="ROWS", help=_SHOW_HELP)
    for action in parser._actions:
        if dataclasses.is_dataclass(action.type):
            action.type = _reporting_own_errors(action.type)
        elif action.type is dict or typing.get_origin(action.type) is dict:
            action.type = _json_mapping
        elif action.dest == "report_to":
            # transformers' parser reads `str | list[str]` as one word: no second tracker.
            action.nargs = "+"

    options = {action.dest for action in parser._actions}
    return parser, {
        name: hint
        for cls in dataclass_types
        for name, hint in typing.get_type_hints(cls).items()
        if name in options
    }


def bf16_hardware() -> str | None:
    """Name the device whose bfloat16 arithmetic is native, or None when there is none."""
    import torch

    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.cuda.get_device_name() if native else None

    # On MPS and XPU upstream's own check decides when the flag is given.
    if torch.accelerator.is_available():
        return None

    capabilities = torch.cpu.get_capabilities()
    found = [name for name in ("amx_bf16", "avx512_bf16", "bf16") if capabilities.get(name)]
    return f"CPU with {found[0]}" if found else None


class _StrictParser(HfArgumentParser):
    """A parser that raises a mistake as one line, without the usage of 150 options."""

    origin: Callable[[str], str] = staticmethod(lambda message: message)

    def error(self, message: str) -> typing.NoReturn:
        raise ConfigError(self.origin(message.replace("argument --", "--", 1)))


class _Entry(NamedTuple):
    """One key of the YAML file: where it stands, and its value as flags of argparse."""

    place: str
    flags: list[str]


def _read_yaml(
    path: Path, parser: ArgumentParser, hints: dict[str, Any], flags: list[str]
) -> dict[str, _Entry]:
    """Return the file's values as flags, each checked so a mistake names its line.

    What belongs to other data than the command line names is left out.
    """
    root = read_options(path, hints)
    if root is None:
        return {}

    dropped = data_settings.settings_to_drop(root, str(path), hints, flags)
    data_settings.log_dropped(dropped, path)

    entries: dict[str, _Entry] = {}
    actions = {
        action.dest: action
        for action in parser._actions
        if action.option_strings[0] == f"--{action.dest}"
    }

    # Single keys are checked below, without the options that the parser requires.
    required = [action for action in parser._actions if action.required]
    for action in required:
        action.required = False

    for key_node, value_node in root.value:
        key = str(key_node.value)
        place = f"{path}:{key_node.start_mark.line + 1}: "
        if key == data_settings.KEY or key in dropped:
            continue

        entry = _Entry(place, _flags(value_node, actions[key], hints[key], place, parser))
        entries[key] = entry
        if entry.flags:
            parser.__dict__["origin"] = lambda message, place=place: f"{place}{message}"
            parser.parse_known_args(entry.flags)

    parser.__dict__.pop("origin", None)
    for action in required:
        action.required = action.dest not in entries or bool(entries[action.dest].flags)
    return entries


def _flags(
    node: yaml.Node, action: Action, hint: Any, place: str, parser: ArgumentParser
) -> list[str]:
    """Return one YAML value as flags.

    What argparse cannot spell (null, [], mappings) becomes the parser's default.
    """
    key, members = action.dest, _members(hint)
    value = bounded_yaml.construct(node, f"{place}{key}")
    if value is None:
        if type(None) not in members:
            raise ConfigError(f"{place}{key} takes {_type_name(hint)}, got null")
        parser.set_defaults(**{key: None})
        return []

    if isinstance(value, list):
        item = next((typing.get_args(m)[0] for m in members if typing.get_origin(m) is list), None)
        if item is None:
            raise ConfigError(f"{place}{key} takes {_type_name(hint)}, got a list: {value!r}")
        if dataclasses.is_dataclass(item):
            parser.set_defaults(**{key: [_build_item(item, entry, key, place) for entry in value]})
            return []
        if not value:
            parser.set_defaults(**{key: []})
            return []

        texts = [_text(child) for child in typing.cast(yaml.SequenceNode, node).value]
        for entry, text in zip(value, texts, strict=True):
            if entry is None or isinstance(entry, list | dict) or text.startswith("--"):
                raise ConfigError(f"{place}each item of {key} is one word or number, got {entry!r}")
        return [f"--{key}", *texts] if action.nargs == "+" else [f"--{key}={json.dumps(value)}"]

    if isinstance(value, dict):
        if not any(m is dict or typing.get_origin(m) is dict for m in members):
            raise ConfigError(f"{place}{key} takes {_type_name(hint)}, got a mapping: {value!r}")
        return [f"--{key}={json.dumps(value)}"]

    if isinstance(value, bool) and bool in members:
        return [f"--{key}={str(value).lower()}"]
    return [f"--{key}={_text(node)}"]


def _text(node: yaml.Node) -> str:
    """Return a scalar as it is in the file.

    `eval_strategy: no` means the word, although YAML 1.1 reads it as false.
    """
    return str(node.value)


def _build_item(cls: Any, entry: Any, key: str, place: str) -> Any:
    """Make one dataclass of a list from a YAML mapping, or from a plain string."""
    names = [f.name for f in dataclasses.fields(cls)]
    if isinstance(entry, str):
        entry = {names[0]: entry}

    if not isinstance(entry, dict):
        raise ConfigError(
            f"{place}each item of {key} is a string or a mapping of {', '.join(names)}, got "
            f"{entry!r}"
        )

    for name in entry:
        if name not in names:
            raise ConfigError(f"{place}{key} has unknown key {suggest(str(name), names)}")

    hints = typing.get_type_hints(cls)
    for name, value in entry.items():
        if (
            isinstance(value, int)
            and not isinstance(value, bool)
            and float in _members(hints[name])
        ):
            entry[name] = value = float(value)

        if not any(isinstance(value, m) for m in _members(hints[name]) if isinstance(m, type)):
            raise ConfigError(
                f"{place}{key}: {name} takes {_type_name(hints[name])}, got {value!r}"
            )

    try:
        return cls(**entry)
    except TypeError:
        raise ConfigError(f"{place}{key}: {entry!r} lacks {names[0]!r}") from None
    except ConfigError as error:
        raise ConfigError(f"{place}{error}") from None


def _build_settings(cls: Any, values: dict[str, Any]) -> Any:
    """Make one settings object; what its own checks refuse is the user's mistake."""
    try:
        return cls(**{f.name: values[f.name] for f in dataclasses.fields(cls) if f.init})
    except HfstackError:
        raise
    # Upstream opens the files that some settings name, and calls classes with mappings.
    except (ValueError, ImportError, OSError, TypeError) as error:
        is_ours = cls.__module__.partition(".")[0] == "hfstack"
        if is_ours and isinstance(error, TypeError):
            raise
        raise ConfigError(f"{cls.__name__}: {' '.join(str(error).split())}") from error


def _json_mapping(text: str) -> dict[str, Any]:
    """Read a mapping as the command line spells it: '{"min_lr_rate": 0.1}'."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ArgumentTypeError(f"expected a JSON mapping, got {text!r}")
    return value


def _reporting_own_errors(cls: Any) -> Callable[[str], Any]:
    """Return a dataclass as an option's type whose own error messages are shown.

    argparse replaces the message of any ValueError.
    """

    def convert(text: str) -> Any:
        try:
            return cls(text)
        except ConfigError as error:
            raise ArgumentTypeError(str(error)) from error

    convert.__name__ = cls.__name__
    return convert


def _resolve_renamed(values: dict[str, Any], flagged: Collection[str]) -> None:
    """Read the old name of a setting as its new one, unless the new one was given.

    Upstream drops the old one silently.
    """
    for old, new in _RENAMED.items():
        if old not in values or new not in values:
            continue
        if values[new] is None or (old in flagged and new not in flagged):
            values[new] = values[old]


def _resolve_hardware(values: dict[str, Any], given: set[str]) -> None:
    """Choose `use_cpu` and `bf16` by the hardware unless they were given, and log it."""
    chosen: list[str] = []
    is_undecided = values.get("use_cpu") is False and "use_cpu" not in given
    # Late: a recipe that trains nothing has no such setting, and imports no torch.
    if is_undecided and not import_module("torch").accelerator.is_available():
        values["use_cpu"] = True
        chosen.append("use_cpu true (no accelerator found)")

    if "bf16" in values and not {"bf16", "fp16"} & given:
        device = bf16_hardware()
        if values.get("use_cpu") and device and not device.startswith("CPU"):
            device = None
        values["bf16"] = device is not None
        chosen.append(
            f"bf16 true ({device})" if device else "bf16 false (not native on this hardware)"
        )

    if "disable_tqdm" in values and "disable_tqdm" not in given and not sys.stderr.isatty():
        values["disable_tqdm"] = True
    if chosen:
        logger.info("not set, so chosen by the hardware: %s", ", ".join(chosen))


def _members(hint: Any) -> tuple[Any, ...]:
    """Return the types of a union, or the one type."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _type_name(hint: Any) -> str:
    """Return a type as messages name it: without modules, a choice by its values."""
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return " | ".join(str(member.value) for member in hint)
    return hint.__name__ if isinstance(hint, type) else re.sub(r"\w+\.(?=\w)", "", str(hint))
