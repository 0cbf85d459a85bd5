"""Refuse settings that need a package which is not installed."""

import importlib
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from hfstack.errors import ConfigError, MissingExtraError

# A tracker of `--report_to` and the packages of which one has to be there.
_TRACKERS = {
    "clearml": ("clearml",),
    "codecarbon": ("codecarbon",),
    "comet_ml": ("comet_ml",),
    "dvclive": ("dvclive",),
    "mlflow": ("mlflow",),
    "neptune": ("neptune",),
    "swanlab": ("swanlab",),
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}
# transformers takes the kernel of the Hub where flash-attn itself is not installed.
_ATTENTION = {
    "flash_attention_2": ("flash_attn", "kernels"),
    "flash_attention_3": ("flash_attn_3", "flash_attn_interface", "kernels"),
}


def import_extra(name: str, extra: str) -> Any:
    """Return a module of an extra, such as `sentence_transformers` or one below it.

    Raises:
        MissingExtraError: the package is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.partition(".")[0]
        # a module that the package itself lacks is no missing extra
        if error.name != package:
            raise
        raise MissingExtraError(package, extra) from None


def refuse_missing_packages(values: Mapping[str, Any]) -> None:
    """Raise when a tracker or a kind of attention is asked for that is not installed.

    Args:
        values: the settings by name.

    Raises:
        ConfigError: with the package and what to do without it.
    """
    trackers = values.get("report_to") or []
    for tracker in [trackers] if isinstance(trackers, str) else trackers:
        packages = _TRACKERS.get(tracker, ())
        if packages and not any(map(find_spec, packages)):
            raise ConfigError(
                f"--report_to {tracker}: {packages[0]} is not installed; pip install "
                f"{packages[0]}, or --report_to none"
            )

    attention = values.get("attn_implementation")
    packages = _ATTENTION.get(attention or "", ())
    if packages and not any(map(find_spec, packages)):
        raise ConfigError(
            f"--attn_implementation {attention}: {packages[0]} is not installed; pip install "
            f"{packages[0].replace('_', '-')} (it needs a GPU), or leave the option out"
        )
