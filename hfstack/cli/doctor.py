"""Say whether this machine is ready for hfstack, and what to do where it is not.

    hfstack doctor            # python -m hfstack.cli.doctor
    hfstack doctor --json

Exit code 0 when everything needed is there, 1 when something is missing. Anything may be missing
here, so what is not the standard library is imported where it is looked at. The Hub token is looked
for and never read.
"""

import argparse
import dataclasses
import importlib
import importlib.util
import json
import os
import platform
import re
import shutil
import sys
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal, NamedTuple

from hfstack import __version__
from hfstack.cli.launch import count_gpus
from hfstack.logs import is_reader_gone
from hfstack.machine import core_quota, count_cores, processor_name, visible_cores
from hfstack.shipped import CONSTRAINTS, CONSTRAINTS_OLDEST, PYPROJECT, TESTED_VERSIONS

_HUB_TIMEOUT_S = 4
_LEAST_FREE_GIB = 10  # a small model, its checkpoints and one public dataset
# whose versions stand in the lines of what was tested; the record has those of all libraries
_SHOWN = "torch transformers trl accelerate peft datasets".split()


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """The result of one check."""

    topic: str
    state: Literal["ok", "note", "problem"]
    text: str
    fix: str | None = None


class Requirement(NamedTuple):
    """One line of the package's dependencies."""

    name: str
    range: str  # such as ">=1.15,<1.17"
    extra: str | None


def examine() -> list[CheckResult]:
    """Return the results of all checks, in the order in which they are printed."""
    return [
        *_libraries(),
        *_tested_windows(TESTED_VERSIONS),
        *_extras(),
        *_processor(),
        *_accelerators(),
        *_storage(),
        *_hub(os.environ.get("HF_ENDPOINT", "https://huggingface.co")),
    ]


def run_doctor(argv: list[str] | None = None) -> int:
    """Print the results of all checks, as text or JSON; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="hfstack doctor", description="Say whether this machine is ready."
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    as_json = parser.parse_args(argv).json

    findings = examine()
    problems = [finding for finding in findings if finding.state == "problem"]
    if as_json:
        report = {
            "hfstack": __version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "usable": not problems,
            "findings": [dataclasses.asdict(finding) for finding in findings],
        }
        print(json.dumps(report, indent=2))
        return 1 if problems else 0

    print(f"hfstack {__version__}, Python {platform.python_version()}, {platform.platform()}")
    topic = None

    # The findings of a topic follow each other, so each topic has one heading.
    for finding in findings:
        if finding.topic != topic:
            topic = finding.topic
            print(f"\n{topic}")
        print(f"  {finding.state:<8} {finding.text}")
        if finding.fix:
            print(f"           -> {finding.fix}")

    if problems:
        print(f"\n{len(problems)} to put right: see above")
        return 1
    print("\nready")
    return 0


def _libraries() -> Iterator[CheckResult]:
    """Compare the installed libraries with what hfstack needs and was tested with."""
    pinned, oldest = tested_versions(CONSTRAINTS), tested_versions(CONSTRAINTS_OLDEST)
    passed = [
        {_canonical(name): pin for name, pin in record["versions"].items()}
        for record in read_tested_windows(TESTED_VERSIONS)
    ]
    for name, span, extra in requirements():
        if extra is None:
            pins = [oldest.get(_canonical(name)), *(pins.get(_canonical(name)) for pins in passed)]
            pins.append(pinned.get(_canonical(name)))  # the last is what to install
            yield _library(name, span, [pin for pin in pins if pin])


def _library(name: str, span: str, tested: list[str]) -> CheckResult:
    """Compare one installed library with what hfstack asks for.

    Args:
        tested: the versions that the tests run on; the last one is what to install.
    """
    install = f"pip install '{name}=={tested[-1]}'" if tested else f"pip install '{name}{span}'"

    found = installed_version(name)
    if found is None:
        return CheckResult("libraries", "problem", f"{name} is not installed", install)

    # transformers, datasets and accelerate depend on packaging: where it is missing they are too,
    # and are reported. Then no version is worth a comparison, but the other checks still are.
    if not _importable("packaging"):
        return CheckResult("libraries", "note", f"{name} {found}: not compared without packaging")
    if not satisfies(found, span):
        return CheckResult(
            "libraries", "problem", f"{name} {found}: hfstack asks for {span}", install
        )

    releases = {_release(pin): pin for pin in reversed(tested)}
    if tested and _release(found) not in releases:
        *others, last = [releases[release] for release in sorted(releases)]
        versions = f"{', '.join(others)} and {last}" if others else last
        return CheckResult(
            "libraries", "note", f"{name} {found}: within {span}, but tested with {versions}"
        )

    return CheckResult("libraries", "ok", f"{name} {found}")


def _tested_windows(records: Path) -> Iterator[CheckResult]:
    """Say which versions passed which tests, when, and by which command."""
    for record in read_tested_windows(records):
        pins = {"Python": record["python"]} | {name: record["versions"][name] for name in _SHOWN}
        text = (
            f"{record['date']}, {record['window']}, {record['tests']} suite: {record['passed']} "
            f"tests pass with {_one_line(pins)} ({record['command']})"
        )
        yield CheckResult("tested", "ok", text)

    pinned = tested_versions(CONSTRAINTS)
    pins = {name: pinned[name] for name in _SHOWN if name in pinned}
    yield CheckResult(
        "tested", "ok", f"each change, constraints.txt, whole suite: {_one_line(pins)} (make test)"
    )


def _one_line(pins: dict[str, str]) -> str:
    return ", ".join(f"{name} {pin}" for name, pin in pins.items())


def _extras() -> Iterator[CheckResult]:
    """Say which optional dependencies are there, and how to get the others."""
    groups: dict[str, list[str]] = {}
    for name, _, extra in requirements():
        if extra and name != "hfstack":
            groups.setdefault(extra, []).append(name)

    for extra, names in sorted(groups.items()):
        missing = [name for name in names if installed_version(name) is None]
        if missing:
            text = f"{extra}: without {', '.join(missing)}"
            yield CheckResult("optional", "note", text, f"pip install 'hfstack[{extra}]'")
        else:
            yield CheckResult("optional", "ok", f"{extra}: {', '.join(names)}")

    if importlib.util.find_spec("deepspeed") is None:
        yield CheckResult(
            "optional",
            "note",
            "deepspeed: needed by --accelerate zero2 and zero3",
            "pip install deepspeed",
        )
    else:
        yield CheckResult("optional", "ok", f"deepspeed {installed_version('deepspeed')}")


def _processor() -> Iterator[CheckResult]:
    """Describe the processor and the memory."""
    cores = visible_cores()
    yield CheckResult("machine", "ok", f"{processor_name()}, {cores} cores")

    quota = core_quota()
    if quota is not None and quota < cores:
        text = (
            f"the container may use {quota:g} of {cores} cores: {count_cores()} threads are started"
        )
        yield CheckResult("machine", "note", text)

    # Windows has no sysconf, and macOS does not count the free pages.
    pages = {
        name: os.sysconf(name)
        for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES")
        if name in os.sysconf_names
    }
    if len(pages) == 2:
        total, free = (pages[name] * os.sysconf("SC_PAGE_SIZE") / 2**30 for name in pages)
        yield CheckResult("machine", "ok", f"memory: {free:.1f} GiB free of {total:.1f}")


def _accelerators() -> Iterator[CheckResult]:
    """Say what torch computes on, and where bfloat16 is native."""
    # hfstack.config imports all three, and a traceback from it would hide what is missing
    if not all(_importable(name) for name in ("torch", "transformers", "psutil")):
        yield CheckResult(
            "machine", "problem", "devices and bf16 are unknown until torch and transformers import"
        )
        return

    torch = importlib.import_module("torch")
    for index in range(torch.cuda.device_count()):
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info(index))
        text = (
            f"GPU {index}: {torch.cuda.get_device_name(index)}, {free:.1f} GiB free of {total:.1f}"
        )
        yield CheckResult("machine", "ok", f"{text}, CUDA {torch.version.cuda}")

    present = count_gpus()
    if present and not torch.cuda.is_available():
        text = f"nvidia-smi shows {present} GPU(s) that torch {torch.__version__} cannot use"
        yield CheckResult(
            "machine",
            "note",
            text,
            "install a CUDA build of torch: https://pytorch.org/get-started/locally",
        )
    elif not torch.accelerator.is_available():
        yield CheckResult("machine", "ok", "no accelerator: recipes run on the CPU")

    bf16 = importlib.import_module("hfstack.config").bf16_hardware()
    text = "bf16: not native here; recipes compute in fp32 unless bf16 is set"
    if bf16:
        text = f"bf16: native on {bf16}; recipes use it unless bf16 is set"
    yield CheckResult("machine", "ok", text)


def _storage() -> Iterator[CheckResult]:
    """Look at the disks that runs and caches are written to."""
    for label, folder in (("this folder", Path.cwd()), ("Hugging Face cache", hf_home())):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(there).free / 2**30
        text = f"{label} {folder}: {free:.1f} GiB free"

        if not there.is_dir() or not os.access(there, os.W_OK):
            fix = "run from another folder"
            if folder == hf_home():
                fix = "export HF_HOME=<a folder you may write to>"
            yield CheckResult("disk", "problem", f"{label} {folder} cannot be written", fix)
        elif free < _LEAST_FREE_GIB:
            yield CheckResult(
                "disk", "note", f"{text}, which is little for checkpoints and datasets"
            )
        else:
            yield CheckResult("disk", "ok", text)


def _hub(endpoint: str) -> Iterator[CheckResult]:
    """Say whether the Hub answers and whether a token is there.

    Neither is needed for local files.
    """
    # A proxy's address may hold a password.
    host = re.sub(r"//[^/@]*@", "//", endpoint)
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        yield CheckResult(
            "hub", "note", "HF_HUB_OFFLINE is set: only local files and what is cached can be used"
        )
    else:
        try:
            urllib.request.urlopen(f"{endpoint}/api/models?limit=1", timeout=_HUB_TIMEOUT_S).close()
            yield CheckResult("hub", "ok", f"{host} answers")
        except urllib.error.HTTPError as error:
            yield CheckResult("hub", "note", f"{host} answers, with status {error.code}")
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            fix = "use local files, or set HF_ENDPOINT or HTTPS_PROXY"
            yield CheckResult("hub", "note", f"{host} cannot be reached: {reason}", fix)

    place = token_place()
    if place:
        yield CheckResult("hub", "ok", f"a token is present ({place})")
    else:
        fix = "hf auth login, for gated models and for publishing"
        yield CheckResult("hub", "note", "no token: public models and datasets only", fix)


def token_place() -> str | None:
    """Return where a Hub token is kept, without reading its value.

    An environment variable, or the file of `hf auth login`.
    """
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(name):
            return name
    file = Path(os.environ.get("HF_TOKEN_PATH") or hf_home() / "token").expanduser()
    return str(file) if file.is_file() and file.stat().st_size else None


def hf_home() -> Path:
    """Return the folder of Hugging Face's caches and token, as upstream finds it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(os.path.expandvars(os.environ.get("HF_HOME") or cache / "huggingface")).expanduser()


def requirements() -> list[Requirement]:
    """Return what hfstack depends on.

    From its metadata, or from pyproject.toml in a checkout that is not installed.
    """
    try:
        lines = requires("hfstack") or []
    except PackageNotFoundError:
        project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
        extras = project.get("optional-dependencies", {})
        lines = [*project["dependencies"]]
        lines += [
            f"{line}; extra == '{extra}'" for extra, names in extras.items() for line in names
        ]

    # Parsed by hand, because the names are needed where `packaging` is missing too.
    found = []
    for line in lines:
        parts = re.match(
            r"\s*([\w.-]+)(?:\[[^]]*\])?\s*([^;]*?)\s*(?:;.*extra\s*==\s*['\"]([\w-]+)['\"].*)?$",
            line,
        )
        assert parts, line
        span = ",".join(sorted(parts[2].strip("()").replace(" ", "").split(","), reverse=True))
        found.append(Requirement(parts[1], span, parts[3]))

    return found


def tested_versions(constraints: Path) -> dict[str, str]:
    """Return the versions of a shipped constraints file, by canonical name.

    The suite runs on `constraints.txt`, its core on `constraints_oldest.txt` as well.
    """
    lines = constraints.read_text(encoding="utf-8").splitlines() if constraints.is_file() else []
    return {
        _canonical(name): pin.strip()
        for name, equals, pin in (line.partition("==") for line in lines)
        if equals
    }


def read_tested_windows(records: Path) -> list[dict[str, Any]]:
    """Return what `.ci/test_versions` wrote of each window and suite that passed."""
    return json.loads(records.read_text(encoding="utf-8")) if records.is_file() else []


def _canonical(name: str) -> str:
    """Return a package's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def installed_version(name: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def satisfies(found: str, span: str) -> bool:
    """Return whether a version lies in a range such as `>=1.15,<1.17`.

    Neither a local suffix (`+cu128`) nor a pre-release (`2.8.0a0`) counts: containers carry builds
    of torch that are named so.
    """
    specifiers = importlib.import_module("packaging.specifiers")
    return specifiers.SpecifierSet(span).contains(_release(found))


def _release(text: str) -> Any:
    """Return a version (of `packaging`) without suffixes: `2.13.0+cu128` is 2.13.0."""
    parse = importlib.import_module("packaging.version").Version
    return parse(parse(text).base_version)


def _importable(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


if __name__ == "__main__":
    try:
        sys.exit(run_doctor())
    except BrokenPipeError:  # `hfstack doctor | head`: the reader has seen enough
        if not is_reader_gone():
            raise
        sys.exit(1)
