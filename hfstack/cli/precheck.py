"""Find a mistake of a launch before its recipe is started, which takes seconds.

What passes here is judged again, and in full, by the recipe. What its options are is read from the
source of its classes of settings; where that cannot be read, the recipe alone says so.
"""

import contextlib
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

from hfstack.cli.doctor import installed_version
from hfstack.cli.launch import Launch, trains_a_model
from hfstack.data.reading.files import looks_local
from hfstack.data.reading.folders import expand_files
from hfstack.data.reading.tables import read_csv
from hfstack.data_settings import settings_to_drop, values_of_flags
from hfstack.errors import CheckpointError, ConfigError, DataError, HfstackError
from hfstack.hints import describe_too_few_classes, suggest
from hfstack.option_reading import Options, read_recipe_options
from hfstack.packages import refuse_missing_packages
from hfstack.places import expand_place
from hfstack.ranges import refuse_out_of_range
from hfstack.redaction import redact
from hfstack.reporting.runs import find_runs
from hfstack.runs.inputs import describe_inputs, find_changes
from hfstack.runs.model_folder import refuse_architecture
from hfstack.runs.model_names import refuse_missing_model
from hfstack.runs.record import RUN_FILE, changed_files, read_run
from hfstack.shipped import ARCHITECTURES, find_shipped
from hfstack.yaml_options import read_options

_NUMBERS_BY_NAME = {"int": int, "float": float}
_MODELS = (
    "model_name_or_path",
    "tokenizer_name_or_path",
    "reference_model",
    "reward_model",
    "reward_models",
    "teacher_model",
    "other_model",
    "critic_model",
)
_FILES = ("prompts_file", "import_file", "rubric_file", "probe_rubric_file", "task_file")
_FOLDERS = ("run", "index", "fit", "stores")
# a table is read for its labels up to this size, in some tenths of a second
_MOST_BYTES = 16 << 20
# what decides which labels there are, besides a column named on the command line
_LABELS = {"label_column", "task", "labels", "label_name_column", "kind", "max_rows"}


def check_options(flags: list[str], recipe: Path) -> None:
    """Raise for a mistake in the flags of a recipe, or in the YAML that they name.

    Raises:
        HfstackError: an option is unknown or no number, the YAML is none, or a file, a folder or a
            model is not there.
    """
    values = values_of_flags(flags)
    options = read_recipe_options(recipe)
    if options is not None:
        for name, given in values.items():
            _check_option(name, given, options)

    configs = values.get("config", [])
    root = None
    if len(configs) == 1:
        root = read_options(Path(configs[0]), None if options is None else options.kinds)
    if options is not None:
        _check_numbers(values, root, str(configs[0]) if configs else "", options)
    refuse_missing_packages(
        {
            "report_to": values.get("report_to", []),
            "attn_implementation": next(iter(values.get("attn_implementation", [])), None),
        }
    )

    config = str(configs[0]) if configs else ""
    dropped = set()
    if root is not None and options is not None:
        dropped = set(settings_to_drop(root, config, options.kinds, flags))
    _check_places(_Given(values, root, config, dropped), recipe)
    set_in_yaml = set() if root is None else {key.value for key, _ in root.value} - dropped
    if recipe.stem == "classify" and not _LABELS & (set_in_yaml | values.keys() - {"label_column"}):
        _refuse_one_class(values)


def _check_places(given: "_Given", recipe: Path) -> None:
    """Raise for a model, a file or a folder that is named and not there."""
    for name in _MODELS:
        for place, named in given.places(name):
            with named:
                _refuse_no_model(place, given, recipe)

    for name in ("datasets", "eval_datasets"):
        for place, named in given.places(name):
            # What a folder holds is for the recipe to say: a saved dataset is one, too.
            if looks_local(place) and not Path(place).is_dir():
                with named:
                    expand_files(place)
    for place, _ in given.places("runs"):
        find_runs(Path(place))

    for name in (*_FILES, *_FOLDERS):
        for place, named in given.places(name):
            with named:
                if not Path(place).exists():
                    raise ConfigError(f"{place}: no such {'file' if name in _FILES else 'folder'}")

    # Other recipes make the folder that they are given as a repository.
    for place, named in given.places("repo") if recipe.stem == "verify" else ():
        with named:
            if place.startswith("file:") and not Path(unquote(urlsplit(place).path)).is_dir():
                raise ConfigError(f"{place}: no such folder")


def _refuse_one_class(values: dict[str, list[str]]) -> None:
    """Raise DataError for a table on the command line whose rows are all of one class.

    Bad rows, rows without a label and numbers to predict are left to the recipe.
    """
    columns = values.get("label_column", ["label"])
    places = [Path(expand_place(place)) for place in values.get("datasets", [])]
    if len(columns) != 1 or len(places) != 1:
        return
    if places[0].suffix != ".csv" or places[0].stat().st_size > _MOST_BYTES:
        return

    classes: set[str] = set()
    for _, row, _ in read_csv(expand_files(str(places[0]))[0]):
        label = row.get(columns[0]) if isinstance(row, dict) else None
        if label is None:
            return
        text = str(label).strip()
        classes.add(text)
        is_class = text[:1].isalpha() or text.isdecimal()
        if len(classes) > 1 or not is_class:
            return
    raise DataError(describe_too_few_classes(columns[0], classes))


@dataclass(frozen=True)
class _Given:
    """The values of options: those of the command line, else those of the YAML file."""

    values: dict[str, list[str]]
    root: yaml.MappingNode | None
    config: str
    dropped: set[str]

    def places(self, name: str) -> list[tuple[str, contextlib.AbstractContextManager[None]]]:
        """Return the texts of an option, each with what names the option in a mistake."""
        if name in self.values:
            texts = filter(None, self.values[name])
            return [(expand_place(text), _named(f"--{name} ")) for text in texts]
        if self.root is None or name in self.dropped:
            return []

        found = []
        for key, node in self.root.value:
            nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
            place = f"{self.config}:{key.start_mark.line + 1}: {name} "
            found += [
                (expand_place(one.value), _named(place))
                for one in nodes
                if key.value == name and isinstance(one, yaml.ScalarNode) and _is_text(one)
            ]
        return found


@contextlib.contextmanager
def _named(place: str) -> Iterator[None]:
    """Begin the line of a mistake with the option, and where it stands."""
    try:
        yield
    except HfstackError as error:
        raise type(error)(f"{place}{error}") from None


def _is_text(node: yaml.ScalarNode) -> bool:
    return node.tag == "tag:yaml.org,2002:str" and bool(node.value)


def _refuse_no_model(place: str, given: _Given, recipe: Path) -> None:
    """Raise for the name of a model, or of a tokenizer, that cannot be loaded."""
    if "://" in place:  # an endpoint
        return
    if place.endswith(".json"):
        if find_shipped(place, ARCHITECTURES) is None:
            known = ", ".join(path.stem for path in sorted(ARCHITECTURES.glob("*.json")))
            raise ConfigError(f"{place}: no such file; shipped architectures: {known}")
        # What trains begins with random weights; with a tokenizer they can be looked at, too.
        if not given.places("tokenizer_name_or_path") and not trains_a_model(recipe):
            refuse_architecture(place)
        return

    refuse_missing_model(place)
    if Path(place).is_file():
        raise CheckpointError(f"{place} is a file: name its folder, {Path(place).parent}")


def say_finished(launch: Launch, recipe: Path) -> str | None:
    """Return that the same command has finished before; None where it is not sure.

    It is sure when the command, the versions and every file that it reads are what they were. Where
    it is not, the recipe compares the settings one by one.
    """
    folder = launch.output_dir
    if launch.launcher != "python" or folder is None or not (folder / RUN_FILE).is_file():
        return None

    # What is wrong with a record that is not whole is said by the recipe.
    try:
        record = read_run(folder)
    except CheckpointError:
        return None

    same = record.command == redact(shlex.join(launch.command[1:])) and record.world_size == 1
    if record.status != "finished" or not same or record.ended is None:
        return None
    # A view of other runs is made again each time.
    if "replace_own=True" in recipe.read_text(encoding="utf-8"):
        return None
    if any(installed_version(name) != found for name, found in record.versions.items()):
        return None

    began = datetime.fromisoformat(record.started).timestamp()
    configs = values_of_flags(launch.command[2:]).get("config", [])
    read = [recipe, *map(Path, configs)]
    if any(not path.is_file() or path.stat().st_mtime >= began for path in read):
        return None
    inputs = describe_inputs(record.settings, recipe, record.models)
    if find_changes(record.models, inputs) or changed_files(record.data) is not None:
        return None
    return f"{folder}: already finished on {record.ended}, nothing to do"


def _check_numbers(
    values: dict[str, list[str]], root: yaml.MappingNode | None, config: str, options: Options
) -> None:
    """Raise ConfigError for a number outside of its option's range.

    What is no number is for the recipe to say.
    """
    places = {}
    given = {}
    for key, node in root.value if root is not None else []:
        if isinstance(node, yaml.ScalarNode):
            given[key.value] = node.value
            places[key.value] = f"{config}:{key.start_mark.line + 1}: "
    for name, words in values.items():
        given[name] = words[0] if len(words) == 1 else ""
        places.pop(name, None)

    numbers: dict[str, float] = {}
    for name, text in given.items():
        number = _NUMBERS_BY_NAME.get(options.kinds.get(name, ""))
        with contextlib.suppress(ValueError):
            numbers |= {} if number is None else {name: number(text)}
    refuse_out_of_range(numbers, places)


def _check_option(name: str, given: list[str], options: Options) -> None:
    """Raise ConfigError for an option that does not exist, or a number that is none."""
    if name.startswith("no_") and name[3:] in options.switches:
        return
    if name not in options.kinds:
        known = [f"--{option}" for option in options.kinds]
        raise ConfigError(
            f"unknown option {suggest(f'--{name}', known)} (--help all lists every option)"
        )

    number = _NUMBERS_BY_NAME.get(options.kinds[name])
    if number is None or len(given) != 1:
        return
    try:
        number(given[0])
    except ValueError:
        raise ConfigError(f"--{name}: invalid {number.__name__} value: {given[0]!r}") from None
