"""Load a model for one task: tags, answer spans, or a finished text-to-text model.

What the finished model needs beside its weights to be used again is in a `task.json` beside them:
of an adapter, which has no config.json of its own, the tags as well.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

from peft import PeftModel, get_peft_model
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from trl import ModelConfig

from hfstack.disk import read_json_file
from hfstack.errors import CheckpointError, ConfigError
from hfstack.models.adapters import check_adapter_flags
from hfstack.models.contents import ADAPTER_FILE, ModelKind, check_kind
from hfstack.models.context import context_length
from hfstack.models.heads import (
    check_own_tokenizer,
    load_adapter_model,
    load_with_config,
    lora_beside_head,
    read_config,
    refuse_unreadable_rows,
    set_attention_dropout,
)
from hfstack.models.loading import (
    check_vocabulary,
    load_tokenizer,
    require_model_name,
    why_unreadable,
)

Task = Literal["TokenClassification", "QuestionAnswering", "ConditionalGeneration"]

TASK_FILE = "task.json"
_AUTO: dict[Task, Any] = {
    "TokenClassification": AutoModelForTokenClassification,
    "QuestionAnswering": AutoModelForQuestionAnswering,
    "ConditionalGeneration": AutoModelForSeq2SeqLM,
}
_LONGFORMER_SEPARATORS = 3  # <s> question </s></s> text </s>
# As peft names the tasks; "can ..." in messages; what a finished model is called there.
_ADAPTER_TASKS: dict[Task, str] = {
    "TokenClassification": "TOKEN_CLS",
    "QuestionAnswering": "QUESTION_ANS",
}
_PURPOSES: dict[Task, str] = {"TokenClassification": "tag", "QuestionAnswering": "answer questions"}
_MODEL_KINDS: dict[Task, ModelKind] = {
    "TokenClassification": "token classifier",
    "QuestionAnswering": "question answering model",
    "ConditionalGeneration": "encoder-decoder",
}
_TASK_NAMES: dict[Task, str] = {
    "TokenClassification": "tagger",
    "QuestionAnswering": "model that answers questions",
}


def load_with_head(
    args: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    *,
    tags: list[str] | None = None,
    attention_dropout: float | None = None,
) -> PreTrainedModel | PeftModel:
    """Return a model to be trained for a task.

    A head that the checkpoint lacks is newly initialised.

    With --use_peft it is a LoRA adapter on the checkpoint, which trains and saves the new head too.

    Args:
        tags: names of the tags, for token classification.
        attention_dropout: dropout of attention weights while training; None keeps the model's.

    Raises:
        ConfigError: no model was named, the tokenizer does not fit, an adapter cannot be trained
            like that, or the checkpoint has a head for other tags.
        CheckpointError: there is no model at that place.
    """
    check_adapter_flags(args)
    model, new_modules = _load_base(
        args, tokenizer, task, tags=tags, attention_dropout=attention_dropout
    )
    if task == "QuestionAnswering":
        _check_separators(model, tokenizer)
    adapter = lora_beside_head(args, new_modules, _ADAPTER_TASKS[task], model=model)
    return model if adapter is None else cast(PeftModel, get_peft_model(model, adapter))


def _check_separators(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer whose pairs a Longformer cannot read.

    It attends to the first text of a pair, and finds it by its separators.

    Raises:
        ConfigError: a pair has other than its three separators.
    """
    if model.config.model_type != "longformer":
        return
    separator: Any = model.config.sep_token_id
    count = tokenizer("a", "b")["input_ids"].count(separator)  # pyright: ignore
    if count != _LONGFORMER_SEPARATORS:
        raise ConfigError(
            f"{type(model).__name__} finds a question by {_LONGFORMER_SEPARATORS} tokens of id "
            f"{separator} (sep_token_id of its config.json), and this tokenizer puts {count} into "
            "a question with its text: use the tokenizer that came with the model"
        )


def load_finished(
    args: ModelConfig, task: Task
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """Return a finished model in evaluation mode, its tokenizer, and its `task.json`.

    The model may be an adapter; the last is {} without that file.

    Raises:
        CheckpointError: there is no such model, or it is of another kind or without its head.
    """
    name = require_model_name(args)
    check_kind(name, (_MODEL_KINDS[task],), args.model_revision)
    if (Path(name) / ADAPTER_FILE).is_file():
        return _load_task_adapter(args, task, Path(name))

    tokenizer = load_tokenizer(args)
    try:
        model, report = _AUTO[task].from_pretrained(
            name,
            revision=args.model_revision,
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
    except Exception as error:
        cause = why_unreadable(error, _AUTO[task], name, args.model_revision)
        raise CheckpointError(
            f"{name} holds no model that was trained for {task}: {cause}"
        ) from error

    if report["missing_keys"]:
        raise CheckpointError(
            f"{name} was saved without {', '.join(sorted(report['missing_keys'])[:3])}: train it"
        )

    return model.eval(), tokenizer, read_task_file(Path(name)) or {}


def save_task(folder: Path, info: dict[str, Any]) -> None:
    """Write `task.json`."""
    (folder / TASK_FILE).write_text(
        json.dumps(info, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def check_length(
    asked: int | None, config: Any, tokenizer: PreTrainedTokenizerBase, *, usual: int = 512
) -> int:
    """Return the tokens of a window: as asked, or what can be read, at most `usual`.

    Raises:
        ConfigError: more was asked for than the model reads, or less than anything fits into.
    """
    limits = [
        limit for limit in (context_length(config), tokenizer.model_max_length) if limit is not None
    ]
    longest = min(limits)

    if asked is None:
        return min(longest, usual)

    if asked > longest:
        raise ConfigError(
            f"--max_length {asked} is longer than the model's context: use --max_length {longest}"
        )

    if asked < 8:
        raise ConfigError(f"--max_length must be at least 8 tokens, got {asked}")
    return asked


def _load_base(
    args: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    *,
    tags: list[str] | None,
    attention_dropout: float | None,
) -> tuple[PreTrainedModel, list[str]]:
    """Return the model with its head, and the modules that are newly initialised."""
    name = args.model_name_or_path or ""
    config, config_file = read_config(args, tokenizer, purpose=_PURPOSES[task])

    if tags is not None:
        _check_tags(config, tags, name)
        config.num_labels = len(tags)
        config.id2label = dict(enumerate(tags))
        config.label2id = {tag: index for index, tag in enumerate(tags)}

    if attention_dropout is not None:
        set_attention_dropout(config, attention_dropout)

    model, new_modules = load_with_config(
        _AUTO[task], args, config, config_file, purpose=_PURPOSES[task]
    )
    check_vocabulary(model, tokenizer, name)
    refuse_unreadable_rows(model, purpose=_PURPOSES[task])

    if config_file is None:
        check_own_tokenizer(args, tokenizer, name)
    return model, new_modules


def _load_task_adapter(
    args: ModelConfig, task: Task, folder: Path
) -> tuple[PeftModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """Load the base that an adapter names, and the adapter with its trained head."""
    info = read_task_file(folder)
    if info is None:
        raise CheckpointError(f"{folder} is an adapter without {TASK_FILE}: train it again")

    tokenizer = load_tokenizer(args)

    def load_base(name: str) -> tuple[PreTrainedModel, list[str]]:
        named = replace(args, model_name_or_path=name, model_revision="main")
        return _load_base(named, tokenizer, task, tags=info.get("tags"), attention_dropout=None)

    model = load_adapter_model(folder, _ADAPTER_TASKS[task], _TASK_NAMES[task], load_base)
    return model, tokenizer, info


def read_task_file(folder: Path) -> dict[str, Any] | None:
    """Return the `task.json` of a folder, None without one.

    Raises:
        CheckpointError: it is not whole.
    """
    path = folder / TASK_FILE
    if not path.is_file():
        return None
    try:
        values = read_json_file(path)
    except ValueError as error:
        raise CheckpointError(f"{path} is not whole: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is not whole: it is not a JSON object")
    return values


def _check_tags(config: Any, tags: list[str], name: str) -> None:
    """Refuse a tagger of other tags, whose head would be lost or mean something else."""
    if not any(kind.endswith("ForTokenClassification") for kind in config.architectures or []):
        return
    own = [config.id2label[index] for index in range(config.num_labels)]
    if own != tags:
        raise ConfigError(
            f"{name} is a tagger of {len(own)} tags ({', '.join(own[:5])}), the data has "
            f"{len(tags)} ({', '.join(tags[:5])}): name the model that it was made from"
        )
