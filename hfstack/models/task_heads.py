"""Load a model for one task: a tag a token, the begin and end of an answer, or (finished) a text from a text.

What the finished model needs beside its weights to be used again is in a `task.json` beside them.
"""

import json
from pathlib import Path
from typing import Any, Literal

from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from trl import ModelConfig

from hfstack.errors import CheckpointError, ConfigError
from hfstack.logs import get_logger
from hfstack.models.classifier import check_own_tokenizer, set_attention_dropout
from hfstack.models.loading import architecture_config, check_vocabulary, find_architecture
from hfstack.models.masked_head import readable_length

logger = get_logger(__name__)

Task = Literal["TokenClassification", "QuestionAnswering", "ConditionalGeneration"]

TASK_FILE = "task.json"
_AUTO: dict[Task, Any] = {
    "TokenClassification": AutoModelForTokenClassification,
    "QuestionAnswering": AutoModelForQuestionAnswering,
    "ConditionalGeneration": AutoModelForSeq2SeqLM,
}


def load_with_head(
    args: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    *,
    tags: list[str] | None = None,
    attention_dropout: float | None = None,
) -> PreTrainedModel:
    """Return a model to be trained for a task; a head that the checkpoint lacks is drawn anew.

    Args:
        tags: names of the tags, for token classification.
        attention_dropout: dropout of attention weights while training; None keeps the model's.

    Raises:
        ConfigError: no model was named, the tokenizer does not fit, adapters were asked for, or the checkpoint has a
            head for other tags.
        CheckpointError: there is no model at that place.
    """
    name = args.model_name_or_path
    if name is None:
        raise ConfigError("--model_name_or_path is required: a Hub id, a checkpoint directory, or a config.json")
    if args.use_peft or args.load_in_4bit or args.load_in_8bit:
        raise ConfigError("--use_peft, --load_in_4bit and --load_in_8bit are not for this recipe: it trains the model")
    config_file = find_architecture(name)
    try:
        config: Any = (
            architecture_config(config_file, tokenizer)
            if config_file
            else AutoConfig.from_pretrained(name, revision=args.model_revision)
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name}: no model there: {' '.join(str(error).split())[:200]}") from error
    if tags is not None:
        _check_tags(config, tags, name)
        config.num_labels = len(tags)
        config.id2label = dict(enumerate(tags))
        config.label2id = {tag: index for index, tag in enumerate(tags)}
    if attention_dropout is not None:
        set_attention_dropout(config, attention_dropout)
    try:
        if config_file:
            return _AUTO[task].from_config(config, attn_implementation=args.attn_implementation)
        model, report = _AUTO[task].from_pretrained(
            name,
            config=config,
            revision=args.model_revision,
            dtype=args.dtype,
            attn_implementation=args.attn_implementation,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        cause = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{name} holds no model that can be used for {task}: {cause}") from error
    check_vocabulary(model, tokenizer, name)
    check_own_tokenizer(args, tokenizer, name)
    if modules := sorted({key.rpartition(".")[0] for key in report["missing_keys"]}):
        logger.info("%s: drawn anew %s", name, ", ".join(modules))
    return model


def load_finished(args: ModelConfig, task: Task) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """Return a finished model in evaluation mode, its tokenizer, and what its `task.json` says ({} without one).

    Raises:
        CheckpointError: there is no such model, or it was saved without its head.
    """
    name = args.model_name_or_path or ""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=args.model_revision)
        model, report = _AUTO[task].from_pretrained(
            name, revision=args.model_revision, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        cause = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{name} holds no model that was trained for {task}: {cause}") from error
    if report["missing_keys"]:
        raise CheckpointError(f"{name} was saved without {', '.join(sorted(report['missing_keys'])[:3])}: train it")
    path = Path(name) / TASK_FILE
    try:
        info = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise CheckpointError(f"{path} is not whole: {error}") from None
    return model.eval(), tokenizer, info


def save_task(folder: Path, info: dict[str, Any]) -> None:
    """Write `task.json`."""
    (folder / TASK_FILE).write_text(json.dumps(info, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_length(asked: int | None, config: Any, tokenizer: PreTrainedTokenizerBase, *, usual: int = 512) -> int:
    """Return the tokens of a window: what was asked for, or what model and tokenizer can read, at most `usual`.

    Raises:
        ConfigError: more was asked for than the model reads, or less than anything fits into.
    """
    limits = [limit for limit in (readable_length(config), tokenizer.model_max_length) if limit is not None]
    longest = min(limits)
    if asked is None:
        return min(longest, usual)
    if asked > longest:
        raise ConfigError(f"--max_length {asked} is longer than the model's context: use --max_length {longest}")
    if asked < 8:
        raise ConfigError(f"--max_length must be at least 8 tokens, got {asked}")
    return asked


def _check_tags(config: Any, tags: list[str], name: str) -> None:
    """Refuse to go on from a tagger of other tags: its head would be thrown away, or mean something else."""
    if not any(kind.endswith("ForTokenClassification") for kind in config.architectures or []):
        return
    own = [config.id2label[index] for index in range(config.num_labels)]
    if own != tags:
        raise ConfigError(
            f"{name} is a tagger of {len(own)} tags ({', '.join(own[:5])}), the data has {len(tags)} "
            f"({', '.join(tags[:5])}): name the model that it was made from"
        )
