"""Start recipes and try results: `hfstack list`, `copy`, `run`, `chat`, `serve`.

Everything else is a recipe; `warm`, which is not listed, is for scripts of many stages. Standard
library only, so that `hfstack --help` and `hfstack run X --help` are immediate.
"""

import argparse
import difflib
import os
import shutil
import subprocess
import sys
import typing
from pathlib import Path

from hfstack import __version__
from hfstack.cli.chat import add_chat, run_chat
from hfstack.cli.launch import LaunchOptions, plan, read_setting
from hfstack.cli.overview import list_recipes, shorten_reference
from hfstack.cli.retry import execute_again
from hfstack.cli.serve import add_serve, run_serve
from hfstack.cli.supervise import EXIT_MISTAKE, say
from hfstack.cli.warm import cannot_be_warm
from hfstack.errors import ConfigError, HfstackError
from hfstack.logs import is_reader_gone
from hfstack.redaction import redact
from hfstack.shipped import ACCELERATE_CONFIGS, RECIPES, REFERENCE

_VERBS = ("list", "copy", "run", "chat", "serve", "doctor")
_RUN_USAGE = """\
usage: hfstack run RECIPE [options] [the recipe's own flags]

Start a recipe: a name of `hfstack list`, or the path of a recipe file. Its sibling YAML is its
--config unless you give one. The full command is printed. Options of the launcher go before or
after the name; after `--` everything belongs to the recipe.

  --processes N           processes that train together (default 1): torchrun and gloo on a CPU,
                          accelerate on GPUs
  --accelerate NAME|PATH  a config of accelerate instead: {configs}
  --retries N             start again up to N times after a crash or a preemption, from the last
                          checkpoint; stops early when three starts in a row bring no new
                          checkpoint. A mistake of yours is not tried again.
  --log_file FILE         where the launcher's report goes (default OUTPUT_DIR.launch.log, several
                          processes only)
  --sweep NAME=A,B,C      run it once for each value, in folders side by side below --output_dir,
                          and compare them in a report; several --sweep give all combinations. The
                          same command again goes on where it stopped.
  --nodes N               how many machines; give --processes as the sum over all of them
  --node_rank R           which of them this is, 0 first
  --main_address H:P      host and free port of node 0

  hfstack run RECIPE --help        the ten options of that recipe that matter
  hfstack run RECIPE --help all    every one
  --allow_changed NAME ...     a flag of every recipe: settings that a resumed run may change
"""
_LAUNCHER_OPTIONS = (
    "processes",
    "accelerate",
    "log_file",
    "nodes",
    "node_rank",
    "main_address",
    "retries",
    "sweep",
)


def main(argv: list[str] | None = None) -> int:
    """Run one verb and return the exit code.

    0 done, 1 a mistake (one line on stderr), 75 preempted.
    """
    try:
        return _main(sys.argv[1:] if argv is None else argv)
    except HfstackError as error:
        say(redact(str(error)))
        return EXIT_MISTAKE
    except BrokenPipeError:  # `hfstack list | head`
        if not is_reader_gone():
            raise
        return EXIT_MISTAKE


class _Parser(argparse.ArgumentParser):
    """An argparse parser that raises a mistake as one line, as everywhere in hfstack."""

    def error(self, message: str) -> typing.NoReturn:
        raise ConfigError(f"{message} (see: {self.prog} --help)")


def _main(argv: list[str]) -> int:
    """Parse the command line and run its verb."""
    if argv and not argv[0].startswith("-") and argv[0] not in (*_VERBS, "warm"):
        if (RECIPES / f"{argv[0]}.py").is_file():
            raise ConfigError(f"{argv[0]} is no command but a recipe: hfstack run {argv[0]}")
        known = ", ".join(_VERBS)
        raise ConfigError(f"no command {_did_you_mean(argv[0], list(_VERBS))} (there are: {known})")

    parser = _Parser(
        prog="hfstack",
        description="From raw text to a language model: find a recipe and start it.",
        allow_abbrev=False,
    )

    parser.add_argument("--version", action="version", version=f"hfstack {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar=" | ".join(_VERBS), required=True)
    verbs.add_parser("list", help="list the recipes", allow_abbrev=False)
    copy = verbs.add_parser("copy", help="copy a recipe and its YAML, to edit", allow_abbrev=False)
    copy.add_argument("recipe", help="a name of `hfstack list`")
    copy.add_argument(
        "folder", nargs="?", type=Path, default=Path(), help="where to (default: here)"
    )

    verbs.add_parser("run", help="start a recipe (hfstack run --help)", add_help=False)
    add_chat(verbs)
    add_serve(verbs)
    doctor = verbs.add_parser(
        "doctor", help="say whether this machine is ready", allow_abbrev=False
    )
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")

    # The flags of `run` are the recipe's, but argparse would take them for its own.
    if argv[:1] == ["run"]:
        return _run(argv[1:])
    if argv[:1] == ["warm"]:
        return _warm(argv[1:])

    args = parser.parse_args(argv)
    if args.verb == "list":
        print(list_recipes(RECIPES))
        return 0
    if args.verb == "copy":
        return _copy(args.recipe, args.folder)
    if args.verb == "chat":
        return run_chat(args)
    if args.verb == "serve":
        return run_serve(args)

    # doctor imports torch and other large libraries, so it has a process of its own.
    flags = ["--json"] if args.json else []
    return subprocess.call([sys.executable, "-m", "hfstack.cli.doctor", *flags])


def _warm(argv: list[str]) -> int:
    """Become the interpreter of which the runs of a script are forks (warm_server.py)."""
    if len(argv) < 2:
        raise ConfigError("warm needs the path of a socket and the names of recipes")
    path, *names = argv
    for name in names:
        _find(name, RECIPES, ".py", "recipe")
    if reason := cannot_be_warm():
        say(f"each stage starts an interpreter of its own: {reason}")
        return 0

    command = [sys.executable, "-m", "hfstack.cli.warm_server", path, *names]
    return os.execv(sys.executable, command)


def _copy(name: str, folder: Path) -> int:
    """Copy a shipped recipe and its YAML to a folder, overwriting nothing."""
    script = RECIPES / f"{name.removesuffix('.sh')}.sh"
    if script.is_file():
        sources = [script]
    else:
        recipe = _find(name, RECIPES, ".py", "recipe")
        sources = [path for path in (recipe, recipe.with_suffix(".yaml")) if path.is_file()]
    targets = [folder / path.name for path in sources]
    for target in targets:
        if target.exists() or target.is_symlink():
            raise ConfigError(
                f"{target} exists and is never overwritten: choose another folder, or remove it"
            )

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for source, target in zip(sources, targets, strict=True):
            shutil.copyfile(source, target)
            print(target)
    except OSError as error:
        raise ConfigError(f"cannot copy to {folder}: {error.strerror}") from None

    # A bare name would mean the shipped recipe.
    copied = targets[0] if targets[0].parent.parts else f"./{targets[0]}"
    command = "bash" if script.is_file() else "hfstack run"
    say(f"edit, then: {command} {copied}")
    return 0


def _run(argv: list[str]) -> int:
    """Start a recipe, or print its help or that of `run`."""
    name, flags, given = _split(argv)
    asks_help = any(flag in ("-h", "--help") for flag in flags)

    if name is None:
        if not asks_help:
            raise ConfigError("run needs the name of a recipe (see: hfstack list)")
        configs = sorted(path.stem for path in ACCELERATE_CONFIGS.glob("*.yaml"))
        print(_RUN_USAGE.format(configs=", ".join(configs)))
        return 0

    recipe = _find(name, RECIPES, ".py", "recipe")
    if asks_help and recipe.parent == RECIPES:
        page = _reference(recipe.stem)
        print(page if "all" in flags else shorten_reference(page, recipe.stem))
        return 0

    # Who copied a recipe to edit it, and then runs the shipped one by its name, wonders for long.
    edited = Path(recipe.name)
    if edited.is_file() and recipe.resolve() != edited.resolve():
        say(f"{edited} is here as well; to run that one: hfstack run ./{edited}")

    # Refused before the command is printed, or written to a log.
    if read_setting("hub_token", flags) is not None:
        raise ConfigError(
            "--hub_token is refused, so that no token is printed or kept: use HF_TOKEN or `hf "
            "auth login`"
        )

    yaml = recipe.with_suffix(".yaml")
    if read_setting("config", flags) is None and yaml.is_file() and not asks_help:
        flags = ["--config", str(_relative_to_here(yaml)), *flags]

    # Late, because it reads YAML, and `hfstack --help` imports the standard library alone.
    from hfstack.cli.precheck import check_options, say_finished

    if "sweep" in given and not asks_help:
        from hfstack.cli.sweep import run_sweep

        sweeps = given.pop("sweep").split(" ")
        options = [part for option, value in given.items() for part in (f"--{option}", value)]

        def start(other: str, further: list[str]) -> int:
            return _run([other, *further] if other else [name, *options, *flags, *further])

        return run_sweep(sweeps, read_setting("output_dir", flags), start)

    if not asks_help:
        check_options(flags, recipe)

    launch = plan(
        _relative_to_here(recipe),
        flags,
        _launcher_options(given),
        accelerate_configs=_relative_to_here(ACCELERATE_CONFIGS),
    )
    if finished := say_finished(launch, recipe):
        say(finished)
        return 0
    return execute_again(launch)


def _split(argv: list[str]) -> tuple[str | None, list[str], dict[str, str]]:
    """Split `run`'s arguments into the recipe's name, its flags, and the launcher's."""
    name: str | None = None
    flags: list[str] = []
    given: dict[str, str] = {}

    rest = iter(argv)
    for argument in rest:
        option, equals, value = argument.partition("=")
        if argument == "--":
            flags += rest
        elif option.startswith("--") and option[2:].replace("-", "_") in _LAUNCHER_OPTIONS:
            key = option[2:].replace("-", "_")
            found = value if equals else next(rest, "")
            if not found or found.startswith("--"):
                raise ConfigError(f"{option} needs a value (see: hfstack run --help)")
            if key == "sweep" and key in given:
                found = f"{given[key]} {found}"
            elif key in given:
                raise ConfigError(f"{option} may be given once, got {given[key]} and {found}")
            given[key] = found

        # Before the recipe's name only the launcher's options have a meaning.
        elif name is None and argument not in ("-h", "--help"):
            if argument.startswith("-"):
                guess = _did_you_mean(option, [f"--{known}" for known in _LAUNCHER_OPTIONS])
                raise ConfigError(f"unknown option {guess}; the recipe's own flags follow its name")
            name = argument
        else:
            flags.append(argument)

    return name, flags, given


def _launcher_options(given: dict[str, str]) -> LaunchOptions:
    """Return the launcher's options, checked.

    Raises:
        ConfigError: a number is none or too small, or there is no such accelerate config.
    """

    def count(key: str, least: int) -> int | None:
        if key not in given:
            return None
        if not given[key].isdigit() or int(given[key]) < least:
            raise ConfigError(
                f"--{key} takes a whole number of at least {least}, got {given[key]!r}"
            )
        return int(given[key])

    accelerate = None
    if "accelerate" in given:
        found = _find(given["accelerate"], ACCELERATE_CONFIGS, ".yaml", "accelerate config")
        accelerate = _relative_to_here(found)

    return LaunchOptions(
        processes=count("processes", 1),
        accelerate=accelerate,
        log_file=Path(given["log_file"]) if "log_file" in given else None,
        nodes=count("nodes", 1) or 1,
        node_rank=count("node_rank", 0) or 0,
        main_address=given.get("main_address"),
        retries=count("retries", 0) or 0,
    )


def _find(name: str, folder: Path, suffix: str, kind: str) -> Path:
    """Return the file that a path, or the name of something shipped, refers to."""
    if "/" in name or name.endswith((suffix, ".yml")):
        if not Path(name).is_file():
            raise ConfigError(f"{name}: no such file")
        return Path(name)

    known = {path.stem: path for path in sorted(folder.glob(f"*{suffix}"))}
    if name not in known:
        names = ", ".join(known) or "none"
        if kind == "recipe" and name in _VERBS:
            raise ConfigError(f"{name} is no recipe but a command: hfstack {name} --help")
        raise ConfigError(f"no {kind} {_did_you_mean(name, list(known))} (there are: {names})")
    return known[name]


def _did_you_mean(name: str, known: list[str]) -> str:
    """Return a wrong name, quoted, and the known names that are close to it."""
    close = difflib.get_close_matches(name, known, n=3)
    return f"{name!r}; did you mean {' or '.join(map(repr, close))}?" if close else f"{name!r}"


def _relative_to_here(path: Path) -> Path:
    """Return a path below the current folder as relative, any other one as it is."""
    try:
        here = Path.cwd()
    except FileNotFoundError:
        raise ConfigError("the current folder was deleted: cd into one that is there") from None
    return path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path


def _reference(name: str) -> str:
    """Return the option reference of a shipped recipe, without the Markdown around it."""
    page = REFERENCE / f"{name}.md"
    if not page.is_file():
        raise ConfigError(f"{page} is missing; make it with: python -m hfstack.cli.reference")
    return page.read_text(encoding="utf-8").split("```text\n", 1)[1].rsplit("\n```", 1)[0]
