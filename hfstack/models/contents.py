"""Say what a folder or a Hub id holds, and refuse a model of the wrong kind.

The kind is what a model says of itself: `architectures` in config.json, `task_type` in
adapter_config.json. transformers would load most kinds as most others, with random weights in place
of the head that is missing.
"""

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import constants

from hfstack.disk import hash_file, read_json_file
from hfstack.errors import CheckpointError
from hfstack.models.config_ranges import refuse_impossible_numbers
from hfstack.models.size_limits import refuse_too_many_modules

ModelKind = Literal[
    "causal language model",
    "masked language model",
    "sequence classifier",
    "reward model",
    "token classifier",
    "question answering model",
    "encoder-decoder",
    "embedding model",
    "reranker",
    "model without a head",
    "model of an unknown task",
]

ADAPTER_FILE = "adapter_config.json"
CLASSIFIER_FILE = "classifier.json"
"""What the recipe classify writes beside a classifier, whose outputs are then no rewards."""
_READ_BY_UPSTREAM = frozenset((".json", ".jinja", ".model", ".safetensors", ".txt"))
MODULES_FILE = "modules.json"
"""What sentence-transformers writes beside a model that embeds texts, or scores pairs of them."""

# Endings of the names of architectures, and how peft calls the same tasks. Those of one task alone
# agree with transformers' lists; other names are looked for in the lists first, since their ending
# says nothing, or something else, such as Gemma3ForConditionalGeneration.
_BY_ENDING: dict[str, ModelKind] = {
    "ForSequenceClassification": "sequence classifier",
    "ForTokenClassification": "token classifier",
    "ForQuestionAnswering": "question answering model",
    "ForCausalLM": "causal language model",
    "ForMaskedLM": "masked language model",
}
_BY_VAGUE_ENDING: dict[str, ModelKind] = {
    "LMHeadModel": "causal language model",
    "ForPreTraining": "masked language model",
}
_BY_ADAPTER_TASK: dict[str, ModelKind] = {
    "CAUSAL_LM": "causal language model",
    "SEQ_CLS": "sequence classifier",
    "TOKEN_CLS": "token classifier",
    "QUESTION_ANS": "question answering model",
    "SEQ_2_SEQ_LM": "encoder-decoder",
    "FEATURE_EXTRACTION": "model without a head",
}


def _names(mapping: Mapping[Any, Any]) -> frozenset[str]:
    """Return the names of the classes in one of transformers' lists."""
    values = (each if isinstance(each, tuple | list) else (each,) for each in mapping.values())
    return frozenset(chain.from_iterable(values))


@functools.cache
def _classes_by_kind() -> tuple[tuple[ModelKind, frozenset[str]], ...]:
    """Return transformers' own lists of classes; the first that holds a name counts.

    XLM's one class is in two of them.
    """
    # Late, because it imports torch, which a model whose class says what it is does not need.
    from transformers.models.auto import modeling_auto

    masked = _names(modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES)
    causal = _names(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - masked
    return (
        ("causal language model", causal),
        ("encoder-decoder", _names(modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)),
        ("masked language model", masked),
        ("model without a head", _names(modeling_auto.MODEL_MAPPING_NAMES)),
    )


# What to do with a model that was named in the wrong place.
USES: dict[ModelKind, str] = {
    "causal language model": "generate, evaluate_lm and win_rate read it, sft trains it further",
    "masked language model": "generate fills its masks; classify, tag and answer train it further",
    "sequence classifier": "predict and explain read it",
    "reward model": "it is what --reward_model of ppo, rloo, grpo and win_rate names",
    "token classifier": "predict reads it",
    "question answering model": "predict reads it",
    "encoder-decoder": "predict reads it, seq2seq trains it further",
    "embedding model": "search, predict, score and explain read it, embed trains it further",
    "reranker": "predict, score and search --reranker read it, embed trains it further",
    "model without a head": "classify, tag, answer and reward train one on it",
    "model of an unknown task": "name another",
}


@dataclass(frozen=True)
class Contents:
    """What a folder or a Hub id holds.

    Args:
        kind: what its outputs are.
        evidence: the architecture or the adapter's task, and the file that names it.
        adapter: these are the weights of an adapter alone.
        base: where the adapter's base is, as its file names it.
    """

    kind: ModelKind
    evidence: str
    adapter: bool = False
    base: str = ""

    def __str__(self) -> str:
        prefix = "an adapter of " if self.adapter else ""
        return f"{prefix}{_with_article(self.kind)} ({self.evidence})"


def identify_model(name: str, revision: str | None = None) -> Contents:
    """Return what the model at a place is, without loading it.

    Args:
        name: a folder or a Hub id.
        revision: on the Hub.

    Raises:
        CheckpointError: there is no model; the message says what is there instead. An adapter
            names no base.
    """
    refuse_file(name)
    folder = Path(name)
    adapter = _find_adapter(name, revision)
    if adapter is not None:
        return _adapter_contents(name, adapter)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise CheckpointError(f"{name} holds no model: {_other_contents(folder)}")

    config = _read_config_json(name, revision)
    refuse_too_many_modules(
        config,
        f"{name}/config.json",
        raises=CheckpointError,
        folder=folder if folder.is_dir() else None,
    )
    refuse_impossible_numbers(config, f"{name}/config.json", raises=CheckpointError)
    named = config.get("architectures")
    architecture = named[0] if isinstance(named, list) and named else "no architecture"
    if not isinstance(architecture, str):
        raise CheckpointError(f"{name}/config.json: architectures is {str(named)[:40]}, not names")
    kind = kind_of_architecture(architecture)
    # One output and no classes: the number is a reward.
    classes_by_id = config.get("id2label")
    named_labels = len(classes_by_id) if isinstance(classes_by_id, dict) and classes_by_id else 2
    labels = config.get("num_labels", named_labels)
    classes = (folder / CLASSIFIER_FILE).is_file() or config.get("problem_type") == "regression"
    if kind == "sequence classifier" and labels == 1 and not classes:
        kind = "reward model"
    if (other := _kind_of_sentence_transformers(name, revision, kind)) is not None:
        return Contents(other, f"{architecture} with {MODULES_FILE}, from {name}")
    return Contents(kind, f"{architecture}, from {name}/config.json")


def check_kind(name: str, wanted: Collection[ModelKind], revision: str | None = None) -> Contents:
    """Return what a model is, once it is one of the kinds that are wanted.

    A model that does not say what it is passes: loading it shows whether its head is there.

    Args:
        wanted: the kinds that fit; the first one is named in the message.

    Raises:
        CheckpointError: there is no model, or one of another kind.
    """
    found = identify_model(name, revision)
    if found.kind in wanted or found.kind == "model of an unknown task":
        return found
    # the transformer in it is one without a head
    if found.kind == "embedding model" and "model without a head" in wanted:
        return found

    needed = _with_article(next(iter(wanted)))
    raise CheckpointError(f"{name} is {found}, but {needed} is needed here; {USES[found.kind]}")


def refuse_file(name: str) -> None:
    """Refuse a path that is no folder of files, such as model.safetensors.

    Upstream would wait for a pipe in it, and read weights elsewhere on the disk where an index says
    so.
    """
    folder = Path(name)
    if folder.is_file():
        raise CheckpointError(
            f"{name} is a file: name the folder that it is in, with its config.json and tokenizer"
        )
    if not folder.is_dir():
        return

    for path in folder.iterdir():
        if path.suffix in _READ_BY_UPSTREAM and path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else "a pipe or a device"
            raise CheckpointError(f"{path} is {kind} where a file is meant: remove it")
    for index in folder.glob("*.index.json"):
        outside = next((shard for shard in _shards(index) if not _is_below(shard)), None)
        if outside is not None:
            raise CheckpointError(
                f"{index} names the weights {outside[:80]!r}, outside of the folder: copy them "
                "into it"
            )


def _shards(index: Path) -> list[str]:
    """Return the files that an index of weights names, none of a broken one."""
    try:
        shards = read_json_file(index)["weight_map"].values()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    return sorted({shard for shard in shards if isinstance(shard, str)})


def _is_below(name: str) -> bool:
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def kind_of_architecture(architecture: str) -> ModelKind:
    """Return the kind of a class of transformers, or of ours, by its name."""
    for ending, kind in _BY_ENDING.items():
        if architecture.endswith(ending):
            return kind
    for kind, names in _classes_by_kind():
        if architecture in names:
            return kind
    for ending, kind in _BY_VAGUE_ENDING.items():
        if architecture.endswith(ending):
            return kind
    return "model of an unknown task"


def require_trained(
    missing: Collection[str], found: Contents, name: str, *, new_head: bool
) -> str | None:
    """Return a line for the log where parts are newly initialised; None where none is.

    Args:
        missing: what the weights lack.
        found: what the model says that it is.
        new_head: they will be trained.

    Raises:
        CheckpointError: they would be used as they are, and give noise.
    """
    if not missing:
        return None
    parts = ", ".join(sorted(missing)[:3]) + (", ..." if len(missing) > 3 else "")
    if new_head:
        return f"{name} is {found}: newly initialised {parts}"
    raise CheckpointError(
        f"{name} is {found}, and its weights lack {parts}, which would be random: train it first, "
        "or name another model"
    )


def refuse_changed_base(adapter: str, base: str) -> None:
    """Refuse an adapter whose base holds other weights than it was trained on.

    What its run has read stands in run.json, by digest; of a file that has not been written since
    the stamp is enough. Nothing is known of adapters that no run here has made.

    Raises:
        CheckpointError: naming the file.
    """
    folder = Path(adapter).resolve()
    inside = folder.name == "adapter" or folder.name.startswith("checkpoint-")
    run = _run_of(folder) or (_run_of(folder.parent) if inside else {})
    for entry in _entries_of_weights(run):
        path = Path(entry["path"])
        if path.suffix != ".safetensors" or path.resolve().parent != Path(base).resolve():
            continue

        status = path.stat() if path.is_file() else None
        same = status is not None and status.st_size == entry["bytes"]
        if same and status is not None:
            stamp = [status.st_ino, status.st_ctime_ns]
            same = entry.get("stamp") == stamp or hash_file(path) == entry["blake2b"]
        if not same:
            raise CheckpointError(
                f"{adapter} was trained on other weights than {base} holds now: {path.name} has "
                "changed since; restore it, or train the adapter again"
            )


def _entries_of_weights(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what a run.json says of weights; entries of another form are left out."""
    entries = run.get("models")
    return [
        entry
        for entry in (entries if isinstance(entries, list) else [])
        if isinstance(entry, dict)
        and isinstance(entry.get("path"), str)
        and entry.keys() >= {"bytes", "blake2b"}
    ]


def refuse_lost_layers(model: Any, missing: Collection[str], name: str) -> None:
    """Refuse a model of which weights below its head were not in the files.

    They would be newly initialised like a head, and trained from noise. Poolers are left out: heads
    of other tasks do without.

    Args:
        model: as it was loaded.
        missing: names of the tensors that the files lack.
        name: of the model.

    Raises:
        CheckpointError: naming the first, and how many.
    """
    # a model without a head is its own body, and its names have no prefix
    headless = model.base_model is model
    body = "" if headless else f"{model.base_model_prefix}."
    lost = [key for key in missing if key.startswith(body) and "pooler" not in key]

    # a few families, as T5's for questions, have a head beside their layers
    if headless and "For" in type(model).__name__:
        heads = {name for name, part in model.named_children() if hasattr(part, "out_features")}
        lost = [key for key in lost if key.partition(".")[0] not in heads]
    if lost:
        where = "" if headless else " below its head"
        raise CheckpointError(
            f"{name} lacks {len(lost)} weights{where}, such as {min(lost)}, which would be "
            "random: its files hold them under other names, or were saved incompletely"
        )


def not_found(what: str, name: str, error: Exception | str) -> str:
    """Return one line for the many ways in which upstream fails to load something."""
    cause = " ".join(str(error).split())
    path = Path(name)
    if path.exists():
        # The place is there, but holds something else.
        files = ", ".join(sorted(p.name for p in path.iterdir())[:8]) if path.is_dir() else "a file"
        return f"{name} holds no {what} that can be loaded (it has: {files}): {cause[:200]}"
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        return f"no {what} at {name}: no such directory"
    return (
        f"no {what} {name!r} here or at {constants.ENDPOINT}: no such directory, and on the Hub it "
        "is private, missing, or out of reach (no token, no network)"
    )


def _with_article(kind: ModelKind) -> str:
    return f"{'an' if kind[0] in 'aeio' else 'a'} {kind}"


def _read_config_json(name: str, revision: str | None) -> dict[str, Any]:
    """Return the config.json of a folder or Hub id."""
    try:
        if Path(name).is_dir():
            config = read_json_file(Path(name) / "config.json")
            if not isinstance(config, dict):
                raise ValueError("config.json holds no object")
            return config

        # Late, because it imports torch.
        from transformers import PreTrainedConfig

        return PreTrainedConfig.get_config_dict(name, revision=revision)[0]
    except (OSError, ValueError) as error:
        raise CheckpointError(not_found("model", name, error)) from error


def _find_adapter(name: str, revision: str | None) -> Path | None:
    """Return the adapter_config.json of a folder or Hub id, or None without one."""
    if Path(name).is_dir():
        file = Path(name) / ADAPTER_FILE
        return file if file.is_file() else None

    # Late, because it imports transformers.
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        found = find_adapter_config_file(name, revision=revision)
    except (OSError, ValueError):  # no name that the Hub could have
        return None
    return Path(found) if found is not None else None


def _adapter_contents(name: str, file: Path) -> Contents:
    """Return what an adapter is, by the task that peft recorded."""
    try:
        config = read_json_file(file)
        task, base = config.get("task_type"), config.get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{name}/{ADAPTER_FILE} cannot be read: {error}") from None

    if not base or not isinstance(base, str):
        raise CheckpointError(f"{name} is an adapter that names no base model: train it again")
    refuse_impossible_numbers(config, f"{name}/{ADAPTER_FILE}", raises=CheckpointError)
    _refuse_circle(name, base)
    kind = _BY_ADAPTER_TASK.get(str(task), "model of an unknown task")
    if kind == "sequence classifier" and _run_of(Path(name)).get("recipe") == "reward":
        kind = "reward model"
    return Contents(kind, f"{task}, from {name}/{ADAPTER_FILE}", adapter=True, base=base)


def _refuse_circle(name: str, base: str) -> None:
    """Refuse an adapter whose bases lead back to it: loading them would never end."""
    seen = {Path(name).resolve()}
    while "\0" not in base and (file := Path(base) / ADAPTER_FILE).is_file():
        if file.parent.resolve() in seen:
            raise CheckpointError(
                f"{name} is an adapter on {base}, whose base is an adapter again, in a circle: "
                f"name the model under them in {ADAPTER_FILE}"
            )
        seen.add(file.parent.resolve())
        try:
            base = str(read_json_file(file)["base_model_name_or_path"])
        except (OSError, ValueError, KeyError, TypeError):
            return  # said where it is loaded


def _kind_of_sentence_transformers(
    name: str, revision: str | None, kind: ModelKind
) -> ModelKind | None:
    """Return what sentence-transformers makes of a model; None where it is no such.

    Its folders hold a plain model of transformers, and modules.json beside it.
    """
    if kind not in ("model without a head", "masked language model", "reward model"):
        return None
    if Path(name).is_dir():
        found = (Path(name) / MODULES_FILE).is_file()
    else:
        # Late, because it imports transformers.
        from transformers.utils import cached_file

        lenient: Any = {"_raise_exceptions_for_missing_entries": False}
        found = cached_file(name, MODULES_FILE, revision=revision, **lenient) is not None

    if not found:
        return None
    return "reranker" if kind == "reward model" else "embedding model"


def _run_of(folder: Path) -> dict[str, Any]:
    """Return the run.json of a folder, {} without one that can be read."""
    try:
        values = read_json_file(folder / "run.json")
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _other_contents(folder: Path) -> str:
    """Return what a folder without a model has instead, and what to name."""
    files = sorted(path.name for path in folder.iterdir())
    steps = [name for name in files if name.startswith("checkpoint-")]
    newest = max(steps, key=lambda name: (len(name), name), default=None)

    run = _run_of(folder)
    if newest is not None:
        status = f" ({run.get('recipe')}, {run.get('status')})" if run else ""
        return f"it is a run{status} with checkpoints; name one of them, such as {folder / newest}"
    if weights := [name for name in files if name.endswith(".safetensors")]:
        return f"{weights[0]} has no config.json beside it, which says what it is"
    if "tokenizer.json" in files or "tokenizer_config.json" in files:
        return "a tokenizer only"
    if run:
        return f"it is a run of {run.get('recipe')} ({run.get('status')}), which left none there"
    return f"it has {', '.join(files[:8])}" if files else "it is empty"
