"""Say what a model folder holds, by its JSON files, before torch is imported.

transformers loads almost any checkpoint as almost any model, with a new head where it has none, and
warns at most: a classifier that is asked to generate gives noise. Standard library only.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hfstack.disk import read_json_file
from hfstack.errors import CheckpointError
from hfstack.runs.checkpoint_files import newest_checkpoint

_CONFIG, _ADAPTER_CONFIG, _RUN_FILE = "config.json", "adapter_config.json", "run.json"
_USE_OF_TASK = {
    "TOKEN_CLS": "a tagger: hfstack run predict uses it",
    "QUESTION_ANS": "a model that answers by a span of a text: hfstack run predict uses it",
    "SEQ_CLS": "a classifier or a reward model",
    "SEQ_2_SEQ_LM": "an encoder-decoder: hfstack run predict uses it",
    "FEATURE_EXTRACTION": "an encoder, which generates no text",
}
_USE_OF_HEAD = {
    "ForMaskedLM": "a masked language model: hfstack run generate fills its masks",
    "ForPreTraining": "a masked language model: hfstack run generate fills its masks",
    "ForTokenClassification": _USE_OF_TASK["TOKEN_CLS"],
    "ForQuestionAnswering": _USE_OF_TASK["QUESTION_ANS"],
    "ForMultipleChoice": "a model that chooses among answers, and generates no text",
}


def find_causal_lm(name: str) -> str:
    """Return the folder of a causal language model, or the name as it is for a Hub id.

    Of a run that has not finished, it is that of its newest whole checkpoint.

    Raises:
        CheckpointError: the folder is not there, or holds no causal language model; the message
            says what it holds.
    """
    refuse_missing_folder(name)
    path = Path(name).expanduser()
    if not path.exists():
        return name

    if not path.is_dir():
        raise CheckpointError(f"{name} is a file: name its folder, {path.parent}")
    if (path / _ADAPTER_CONFIG).is_file():
        refuse_other_adapter(name, read_object(path / _ADAPTER_CONFIG))
        return str(path)
    if (path / _CONFIG).is_file():
        refuse_other_model(name, read_object(path / _CONFIG))
        return str(path)

    checkpoint = newest_checkpoint(path)
    if checkpoint is not None:
        return find_causal_lm(str(checkpoint))
    raise CheckpointError(f"{name} holds no model{_describe_contents(path)}")


def refuse_missing_folder(name: str) -> None:
    """Raise CheckpointError for a name that is no Hub id, and not there."""
    path = Path(name).expanduser()
    if not path.exists() and _looks_local(name, path):
        raise CheckpointError(f"{name}: no such folder{suggest_neighbour(path)}")


def refuse_architecture(name: str) -> None:
    """Raise CheckpointError for an architecture, which is no model yet."""
    if name.endswith(".json"):
        raise CheckpointError(
            f"{name} is an architecture, whose weights are random: name what was trained from it, "
            "such as runs/pretrain_clm"
        )


def refuse_other_model(name: str, config: Mapping[str, Any]) -> None:
    """Raise CheckpointError when a config.json is not that of a causal language model."""
    architectures = [str(one) for one in config.get("architectures") or []]
    if any(one.endswith(("ForCausalLM", "LMHeadModel")) for one in architectures):
        return

    found = None
    if config.get("is_encoder_decoder"):
        found = _USE_OF_TASK["SEQ_2_SEQ_LM"]
    for one in architectures:
        head = next((text for ending, text in _USE_OF_HEAD.items() if one.endswith(ending)), None)
        if one.endswith("ForSequenceClassification"):
            head = _describe_classifier(config)
        elif one.endswith("Model") and head is None:
            head = "a model without a head, which generates no text"
        found = found or head

    if found is not None:
        shown = f" ({', '.join(architectures)})" if architectures else ""
        raise CheckpointError(f"{name}{shown} is {found}; a causal language model is needed")


def refuse_other_adapter(name: str, config: Mapping[str, Any]) -> None:
    """Raise CheckpointError when an adapter is not that of a causal language model."""
    task = config.get("task_type")
    if task in _USE_OF_TASK:
        raise CheckpointError(
            f"{name} is the adapter of {_USE_OF_TASK[task]}; a causal language model is needed"
        )


def _describe_classifier(config: Mapping[str, Any]) -> str:
    """Return what a model with a classification head is, by its number of labels."""
    labels = config.get("num_labels") or len(config.get("id2label") or (0, 1))
    if labels == 1:
        return "a reward model or a regression, which scores texts and generates none"
    return f"a classifier of {labels} labels: hfstack run predict uses it"


def _looks_local(name: str, path: Path) -> bool:
    """Return whether a name that is not there is no Hub id (`name`, `owner/name`)."""
    below_a_folder = len(path.parts) > 1 and Path(path.parts[0]).is_dir()
    return path.is_absolute() or name.startswith(".") or name.count("/") > 1 or below_a_folder


def suggest_neighbour(path: Path) -> str:
    """Return `; did you mean ...?` for a folder beside it whose name is close, or ""."""
    if not path.parent.is_dir():
        return f" (nor is {path.parent})"
    neighbours = [entry.name for entry in path.parent.iterdir() if entry.is_dir()]
    close = difflib.get_close_matches(path.name, neighbours, n=1)
    return f"; did you mean {path.parent / close[0]}?" if close else ""


def _describe_contents(path: Path) -> str:
    """Return what a folder without a model is, or holds."""
    if (path / _RUN_FILE).is_file():
        record = read_object(path / _RUN_FILE)
        return f": it is a run of {record.get('recipe')} that is {record.get('status')}"

    inside = sorted(entry.name for entry in path.iterdir())
    models = [
        str(path / entry)
        for entry in inside
        if (path / entry / _CONFIG).is_file() or (path / entry / _ADAPTER_CONFIG).is_file()
    ]
    if models:
        return f"; these do: {', '.join(models[:8])}"
    return f" (it has: {', '.join(inside[:8])})" if inside else ": it is empty"


def read_object(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file.

    Raises:
        CheckpointError: it cannot be read, or is not one.
    """
    try:
        content = read_json_file(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return content
