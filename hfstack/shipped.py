"""Find the files that come with hfstack, in a checkout or an installed wheel.

Standard library only, because the command line reads it before anything heavy is imported.
"""

import re
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_WHEEL = _PACKAGE / "_shipped"
_IN_WHEEL = _WHEEL.is_dir()  # otherwise this is a checkout

ROOT = _WHEEL if _IN_WHEEL else _PACKAGE.parent
RECIPES = ROOT / "recipes"
ARCHITECTURES = RECIPES / "architectures"
CHAT_TEMPLATES = RECIPES / "chat_templates"
ACCELERATE_CONFIGS = ROOT / "accelerate_configs"
REFERENCE = ROOT / "reference" if _IN_WHEEL else ROOT / "docs" / "reference"
CONSTRAINTS = ROOT / "constraints.txt"
CONSTRAINTS_OLDEST = ROOT / "constraints_oldest.txt"
TESTED_VERSIONS = ROOT / "tested_versions.json"
PYPROJECT = _PACKAGE.parent / "pyproject.toml"  # there in a checkout alone

_SIZE_SUFFIX = re.compile(r"-\d+(\.\d+)?[kmb]$", re.IGNORECASE)


def without_size(name: str) -> str:
    """Return the family that a config.json is named after: `llama` for `llama-1m`."""
    return _SIZE_SUFFIX.sub("", name)


def find_shipped(name: str, folder: Path) -> Path | None:
    """Return the file at a path, else the shipped file of that name, or None."""
    candidates = (Path(name), folder / Path(name).name)
    return next((path for path in candidates if path.is_file()), None)
