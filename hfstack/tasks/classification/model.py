"""Load a text classifier, to be trained whole, by its head alone, or by LoRA.

What a model needs beside its weights to be used again (names of the labels, temperature, columns,
length) is in a `classifier.json` beside them, since an adapter has no config.json of its own.
config.json carries the names as well.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from accelerate import PartialState
from peft import PeftModel
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from trl import ModelConfig

from hfstack.disk import read_json_file
from hfstack.errors import CheckpointError, ConfigError
from hfstack.models.contents import ADAPTER_FILE, CLASSIFIER_FILE, check_kind
from hfstack.models.heads import (
    check_own_tokenizer,
    checkpoint_config,
    load_adapter_model,
    load_with_config,
    padding_id,
    read_config,
    require_equal_ends,
    set_attention_dropout,
)
from hfstack.models.loading import check_vocabulary, load_tokenizer, require_model_name


@dataclass
class ClassifierInfo:
    """What a finished classifier says of itself."""

    problem_type: str
    """`single_label_classification`, `multi_label_classification` or `regression`, as transformers
    calls them.
    """
    names: list[str]
    """Labels by id; none for a regression."""
    text_column: str = "text"
    text_pair_column: str | None = None
    max_length: int | None = None
    """Tokens of the longest text that it was trained on; longer ones are truncated."""
    temperature: float = 1.0
    """What logits are divided by before the softmax, or the sigmoid, so that probabilities mean
    what they say.
    """

    def save(self, folder: Path) -> None:
        """Write `classifier.json`, from the first process alone."""
        if not PartialState().is_main_process:
            return
        text = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False)
        (folder / CLASSIFIER_FILE).write_text(text + "\n", encoding="utf-8")


def read_classifier_info(folder: str | Path) -> ClassifierInfo | None:
    """Read the `classifier.json` of a folder, or None when it has none.

    Raises:
        CheckpointError: it is not whole.
    """
    path = Path(folder) / CLASSIFIER_FILE
    if not path.is_file():
        return None
    try:
        return ClassifierInfo(**read_json_file(path))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is not a classifier's description: {error}") from None


def load_classifier(
    args: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    problem_type: str,
    id2label: dict[int, str],
    attention_dropout: float | None = None,
    new_modules: list[str] | None = None,
) -> PreTrainedModel:
    """Return a model with one output a label, to be trained.

    A head that the checkpoint lacks is newly initialised.

    Args:
        attention_dropout: dropout of attention weights while training; None keeps the model's.
        new_modules: filled with the names of the modules that the checkpoint does not hold, the
            head among them.

    Raises:
        ConfigError: no model was named, the tokenizer does not fit, it is a classifier of other
            labels or an adapter.
        CheckpointError: there is no model at that place.
    """
    # A classifier of the same labels keeps its head; one of others would lose it without a word.
    name = args.model_name_or_path or ""
    config, config_file = read_config(args, tokenizer, purpose="classify")
    if config_file is None:
        _check_head(config, problem_type, id2label, name)

    config.problem_type = problem_type
    config.num_labels = len(id2label)
    config.id2label = id2label
    config.label2id = {label: index for index, label in id2label.items()}
    if attention_dropout is not None:
        set_attention_dropout(config, attention_dropout)

    model, modules = load_with_config(
        AutoModelForSequenceClassification, args, config, config_file, purpose="classify"
    )
    check_vocabulary(model, tokenizer, name)
    if config_file is None:
        check_own_tokenizer(args, tokenizer, name)
    require_equal_ends(model.config, tokenizer(["a", "a text"])["input_ids"])

    # A decoder is classified by its last token that is no padding, which it finds by this id.
    model.config.get_text_config().pad_token_id = padding_id(tokenizer)

    if new_modules is not None:
        new_modules.extend(modules)
    return model


def load_trained_classifier(
    args: ModelConfig,
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase, ClassifierInfo]:
    """Return a finished classifier in evaluation mode, its tokenizer and its info.

    The folder of a run, of an adapter, or a classifier of the Hub, whose config.json then says it
    all.

    Raises:
        CheckpointError: there is no classifier but another model or none, or an adapter without its
            head, base or description.
    """
    name = require_model_name(args)
    check_kind(name, ("sequence classifier", "reward model"), args.model_revision)
    info = read_classifier_info(name)

    tokenizer = load_tokenizer(args)
    if (Path(name) / ADAPTER_FILE).is_file():
        adapted = _load_classifier_adapter(args, tokenizer, Path(name), info)
        return adapted, tokenizer, cast(ClassifierInfo, info)

    config: Any = checkpoint_config(args, purpose="classify")
    model, missing = load_with_config(
        AutoModelForSequenceClassification, args, config, purpose="classify"
    )
    if missing:
        raise CheckpointError(f"{name} was saved without {', '.join(missing[:3])}: train it again")

    # One that was not trained here: as transformers itself reads a config without a problem type.
    if info is None:
        by_count = "regression" if config.num_labels == 1 else "single_label_classification"
        problem = config.problem_type or by_count
        names = []
        if problem != "regression":
            names = [config.id2label[index] for index in range(config.num_labels)]
        info = ClassifierInfo(problem, names)

    model.config.get_text_config().pad_token_id = padding_id(tokenizer)
    return model.eval(), tokenizer, info


def freeze_encoder(model: PreTrainedModel, new_modules: Sequence[str]) -> int:
    """Let only the head, and what else the checkpoint did not hold, be trained.

    Return how many parameters that are.

    Raises:
        ConfigError: nothing would be trained: the head is not new and has no name that is known for
            one.
    """
    heads = tuple(f"{module}." for module in new_modules) or (
        "classifier.",
        "score.",
        "classification_head.",
    )

    count = 0
    for name, parameter in model.named_parameters():
        trained = name.startswith(heads)
        parameter.requires_grad_(trained)
        count += parameter.numel() if trained else 0

    if not count:
        raise ConfigError("--freeze_encoder: no module of this model is known as its head")
    return count


def _load_classifier_adapter(
    args: ModelConfig, tokenizer: PreTrainedTokenizerBase, folder: Path, info: ClassifierInfo | None
) -> PeftModel:
    """Load the base that an adapter names, and the adapter with its head on it."""

    def load_base(name: str) -> tuple[PreTrainedModel, Sequence[str]]:
        if info is None:
            raise CheckpointError(
                f"{folder} is an adapter without {CLASSIFIER_FILE}: train it again with classify"
            )

        new_modules: list[str] = []
        model = load_classifier(
            replace(args, model_name_or_path=name),
            tokenizer,
            problem_type=info.problem_type,
            id2label=dict(enumerate(info.names)) or {0: "score"},
            new_modules=new_modules,
        )

        return model, new_modules

    return load_adapter_model(folder, "SEQ_CLS", "classifier", load_base)


def _check_head(config: Any, problem_type: str, id2label: dict[int, str], name: str) -> None:
    """Refuse a classifier of other labels, whose head would be lost or misread."""
    if not any(kind.endswith("ForSequenceClassification") for kind in config.architectures or []):
        return
    own = [config.id2label[index] for index in range(config.num_labels)]
    unnamed = own == [f"LABEL_{index}" for index in range(config.num_labels)]

    same = len(own) == len(id2label) and (
        unnamed or problem_type == "regression" or own == list(id2label.values())
    )
    if not same:
        raise ConfigError(
            f"{name} is a classifier of {len(own)} labels ({', '.join(own[:5])}), the data has "
            f"{len(id2label)} ({', '.join(list(id2label.values())[:5])}): name the model that it "
            "was made from"
        )
