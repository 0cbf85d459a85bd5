"""Fold an adapter into its base before it is published."""

from dataclasses import replace
from pathlib import Path

from hfstack.errors import ConfigError
from hfstack.publishing.bundle import ADAPTER_CONFIG, Kind, kind_of, published_files
from hfstack.publishing.measure import load


def merge(adapter: Path, kind: Kind, folder: Path) -> tuple[Kind, dict[str, Path]]:
    """Save the model with the adapter folded in, and return what it is and its files.

    Args:
        adapter: the folder of the adapter and its tokenizer.
        folder: an empty folder for the whole model, in the number format of its base.

    Raises:
        ConfigError: there is no adapter to merge.
        CheckpointError: the base cannot be loaded.
    """
    if not kind.adapter:
        raise ConfigError(f"--merge_adapter: {adapter} has no {ADAPTER_CONFIG}: leave it out")
    model = load(adapter, kind, dtype="auto").merge_and_unload()
    model.save_pretrained(folder)
    tokenizer = {
        name: path for name, path in published_files(adapter, kind, {}).items() if not name.startswith("adapter_")
    }
    for name, path in tokenizer.items():
        (folder / name).write_bytes(path.read_bytes())
    whole = kind_of(folder, {})
    return replace(whole, name=kind.name), published_files(folder, whole, {})
