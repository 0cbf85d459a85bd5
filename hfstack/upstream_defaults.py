"""Replace defaults of upstream that our promises must not rest on.

No code that comes with a model is run, and no usage report of a run is sent.
"""

import os
import sys
from collections.abc import Mapping
from typing import Any

from huggingface_hub import constants
from transformers.utils import logging

from hfstack.errors import ConfigError

_TELEMETRY = ("HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY")


def turn_telemetry_off() -> None:
    """Send no usage data, unless the user has decided by the environment.

    TRL tells the Hub of each trainer that is built (trl/trainer/base_trainer.py), and
    huggingface_hub asks it for a list of coding agents to name one in its headers
    (huggingface_hub/utils/_detect_agent.py). `HF_HUB_DISABLE_TELEMETRY=0` allows both.
    """
    if any(name in os.environ for name in _TELEMETRY):
        return
    # Read when the library is imported, which may be over; processes of this one read the variable.
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    constants.HF_HUB_DISABLE_TELEMETRY = True


def hide_progress_bars() -> None:
    """Let upstream draw no bars, whether its libraries are imported by now or later."""
    logging.disable_progress_bar()
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    datasets = sys.modules.get("datasets")
    if datasets is not None:
        datasets.disable_progress_bars()


def refuse_remote_code(values: Mapping[str, Any]) -> None:
    """Raise when a setting would run code that comes with a model.

    Args:
        values: the settings by name, mappings such as `model_init_kwargs` among them.

    Raises:
        ConfigError: `trust_remote_code` is true.
    """
    for name, value in values.items():
        inside = isinstance(value, Mapping) and value.get("trust_remote_code")
        if inside or (name == "trust_remote_code" and value):
            option = f"{name} with trust_remote_code" if inside else f"{name} {value}"
            raise ConfigError(
                f"--{option} is refused: no code that comes with a model is run; use a model of a "
                "class that transformers has"
            )
