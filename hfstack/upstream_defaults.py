"""Replace defaults of upstream that our promises must not rest on.

No code that comes with a model is run, and no usage report of a run is sent.
"""

import logging as python_logging
import os
import re
import sys
from collections.abc import Mapping
from typing import Any

from huggingface_hub import constants
from transformers.utils import logging

from hfstack.errors import ConfigError

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_REPORT_ROW = re.compile(r"^(.+?)\s+\|\s+([A-Z]+)", re.MULTILINE)
_SHOWN_WEIGHTS = 3
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


class _LoadReport(python_logging.Filter):
    """Shortens the table of weights that a model or its file lacks.

    Whoever loads says what is newly initialised; what is left is a line of what is not used. A
    table that tells of anything else, such as a wrong shape, stays whole.
    """

    def filter(self, record: python_logging.LogRecord) -> bool:
        """Shorten a report; leave it out where nothing of it is left."""
        head, _, table = _COLOURS.sub("", record.getMessage()).partition("LOAD REPORT")
        if not table:
            return True

        statuses = {name: status for name, status in _REPORT_ROW.findall(table) if name != "Key"}
        if set(statuses.values()) - {"MISSING", "UNEXPECTED"}:
            return True
        unused = sorted(name for name, status in statuses.items() if status == "UNEXPECTED")
        model = head.strip()
        more = f" and {len(unused) - _SHOWN_WEIGHTS} more" if len(unused) > _SHOWN_WEIGHTS else ""
        record.msg, record.args = (
            f"a {model} has no use for these weights of the file: "
            f"{', '.join(unused[:_SHOWN_WEIGHTS])}{more}",
            (),
        )
        return bool(unused)


def shorten_load_reports() -> None:
    """Say which weights transformers did not use in a line, not a table."""
    logger = python_logging.getLogger("transformers.modeling_utils")
    if not any(isinstance(one, _LoadReport) for one in logger.filters):
        logger.addFilter(_LoadReport())


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
