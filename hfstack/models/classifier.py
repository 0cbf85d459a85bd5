"""Load a text classifier: a transformer with one output a label, trained whole, frozen but for its head, or by LoRA.

What a model needs beside its weights to be used again (names of the labels, temperature, columns, length) is in a
`classifier.json` beside them, since an adapter has no config.json of its own. config.json carries the names as well.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from accelerate import PartialState
from peft import PeftConfig, PeftModel
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from trl import ModelConfig, get_quantization_config

from hfstack.errors import CheckpointError, ConfigError
from hfstack.logs import get_logger
from hfstack.models.loading import architecture_config, check_vocabulary, find_architecture
from hfstack.models.reward_model import padding_id

logger = get_logger(__name__)

CLASSIFIER_FILE = "classifier.json"
_ADAPTER = "adapter_config.json"
# Names that configurations give to the dropout of attention weights.
_ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")


@dataclass
class ClassifierInfo:
    """What a finished classifier says of itself."""

    problem_type: str
    """`single_label_classification`, `multi_label_classification` or `regression`, as transformers calls them."""
    names: list[str]
    """Labels by id; none for a regression."""
    text_column: str = "text"
    text_pair_column: str | None = None
    max_length: int | None = None
    """Tokens of the longest text that it was trained on; longer ones are cut."""
    temperature: float = 1.0
    """What logits are divided by before the softmax, or the sigmoid, so that probabilities mean what they say."""

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
        return ClassifierInfo(**json.loads(path.read_text(encoding="utf-8")))
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
    """Return a model with one output a label, to be trained; a head that the checkpoint lacks is drawn anew.

    Args:
        attention_dropout: dropout of attention weights while training; None keeps the model's.
        new_modules: filled with the names of the modules that the checkpoint does not hold, the head among them.

    Raises:
        ConfigError: no model was named, the tokenizer does not fit, it is a classifier of other labels or an adapter.
        CheckpointError: there is no model at that place.
    """
    name = args.model_name_or_path
    if name is None:
        raise ConfigError("--model_name_or_path is required: a Hub id, a checkpoint directory, or a config.json")
    if (Path(name) / _ADAPTER).is_file():
        raise ConfigError(f"{name} is an adapter: name the model that it was trained on, or merge it first")
    config_file = find_architecture(name)
    config: Any = architecture_config(config_file, tokenizer) if config_file else _read_config(name, args)
    if config_file is None:
        _check_head(config, problem_type, id2label, name)
    config.problem_type = problem_type
    config.num_labels = len(id2label)
    config.id2label = id2label
    config.label2id = {label: index for index, label in id2label.items()}
    if attention_dropout is not None:
        set_attention_dropout(config, attention_dropout)
    if config_file is not None:
        try:
            model = AutoModelForSequenceClassification.from_config(config, attn_implementation=args.attn_implementation)
        except ValueError as error:
            raise ConfigError(f"{config_file} cannot classify: {' '.join(str(error).split())[:160]}") from error
        missing = [key for key, _ in model.named_parameters()]
    else:
        model, missing = _load_weights(args, name, config)
    check_vocabulary(model, tokenizer, name)
    if config_file is None:
        check_own_tokenizer(args, tokenizer, name)
    model.config.get_text_config().pad_token_id = padding_id(tokenizer)
    modules = sorted({key.rpartition(".")[0] for key in missing})
    if missing and config_file is None:
        logger.info("%s: drawn anew %s", name, ", ".join(modules))
    if new_modules is not None:
        new_modules.extend(modules)
    return model


def load_trained_classifier(
    args: ModelConfig,
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase, ClassifierInfo]:
    """Return a finished classifier in evaluation mode, with its tokenizer and what it says of itself.

    The folder of a run, of an adapter, or a classifier of the Hub, whose config.json then says it all.

    Raises:
        CheckpointError: there is no classifier, or an adapter without its head, base or description.
    """
    name = args.model_name_or_path or ""
    info = read_classifier_info(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=args.model_revision)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name} holds no tokenizer: {' '.join(str(error).split())[:160]}") from error
    if (Path(name) / _ADAPTER).is_file():
        return _load_adapter(args, tokenizer, Path(name), info), tokenizer, cast(ClassifierInfo, info)
    config: Any = _read_config(name, args)
    if not any(kind.endswith("ForSequenceClassification") for kind in config.architectures or []):
        raise CheckpointError(f"{name} is {', '.join(config.architectures or ['no model'])}, not a trained classifier")
    model, missing = _load_weights(args, name, config)
    if missing:
        raise CheckpointError(f"{name} was saved without {', '.join(missing[:3])}: train it again")
    if info is None:
        problem = config.problem_type or ("regression" if config.num_labels == 1 else "single_label_classification")
        names = [] if problem == "regression" else [config.id2label[index] for index in range(config.num_labels)]
        info = ClassifierInfo(problem, names)
    model.config.get_text_config().pad_token_id = padding_id(tokenizer)
    return model.eval(), tokenizer, info


def set_attention_dropout(config: PreTrainedConfig, share: float) -> None:
    """Set the dropout of attention weights, whatever the architecture calls it.

    On a CPU torch's fused attention knows no dropout: with 0.1, as BERT has it, the whole matrix of weights is written
    out, which makes a step of 512 tokens three times as long.

    Raises:
        ConfigError: the share is not in [0, 1).
    """
    if not 0 <= share < 1:
        raise ConfigError(f"--attention_dropout must be in [0, 1), got {share}")
    known = config.to_dict()
    for field in _ATTENTION_DROPOUT:
        if field in known:
            setattr(config, field, share)


def freeze_encoder(model: PreTrainedModel, new_modules: Sequence[str]) -> int:
    """Let only the head, and what else the checkpoint did not hold, be trained; return how many parameters that are.

    Raises:
        ConfigError: nothing would be trained: the head is not new and has no name that is known for one.
    """
    heads = tuple(f"{module}." for module in new_modules) or ("classifier.", "score.", "classification_head.")
    count = 0
    for name, parameter in model.named_parameters():
        trained = name.startswith(heads)
        parameter.requires_grad_(trained)
        count += parameter.numel() if trained else 0
    if not count:
        raise ConfigError("--freeze_encoder: no module of this model is known as its head")
    return count


def _read_config(name: str, args: ModelConfig) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(name, revision=args.model_revision)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name}: no model there: {' '.join(str(error).split())[:200]}") from error


def _load_weights(args: ModelConfig, name: str, config: PreTrainedConfig) -> tuple[PreTrainedModel, list[str]]:
    """Load a checkpoint; also return the names of the parameters that it does not hold."""
    quantization = get_quantization_config(args)
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            name,
            config=config,
            revision=args.model_revision,
            dtype=args.dtype,
            attn_implementation=args.attn_implementation,
            quantization_config=quantization,
            device_map={"": PartialState().device} if quantization else None,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        cause = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{name} holds no model that can classify: {cause}") from error
    return model, sorted(report["missing_keys"])


def _load_adapter(
    args: ModelConfig, tokenizer: PreTrainedTokenizerBase, folder: Path, info: ClassifierInfo | None
) -> PeftModel:
    """Load the base that an adapter names, and the adapter with its head on it."""
    adapter = PeftConfig.from_pretrained(str(folder))
    base = adapter.base_model_name_or_path
    if adapter.task_type != "SEQ_CLS" or not base or info is None:
        lacks = f" without {CLASSIFIER_FILE}" if info is None else ""
        raise CheckpointError(f"{folder} is an adapter{lacks} that the classify recipe has not written")
    new_modules: list[str] = []
    model = load_classifier(
        replace(args, model_name_or_path=base),
        tokenizer,
        problem_type=info.problem_type,
        id2label=dict(enumerate(info.names)) or {0: "score"},
        new_modules=new_modules,
    )
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        held = " ".join(file.keys())
    if lost := [module for module in new_modules if module.rpartition(".")[2] not in held]:
        raise CheckpointError(f"{folder} was saved without {', '.join(lost)}, its head: train it again")
    return PeftModel.from_pretrained(model, str(folder)).eval()


def _check_head(config: Any, problem_type: str, id2label: dict[int, str], name: str) -> None:
    """Refuse to go on from a classifier of other labels: its head would be thrown away, or mean something else."""
    if not any(kind.endswith("ForSequenceClassification") for kind in config.architectures or []):
        return
    own = [config.id2label[index] for index in range(config.num_labels)]
    unnamed = own == [f"LABEL_{index}" for index in range(config.num_labels)]
    same = len(own) == len(id2label) and (unnamed or problem_type == "regression" or own == list(id2label.values()))
    if not same:
        raise ConfigError(
            f"{name} is a classifier of {len(own)} labels ({', '.join(own[:5])}), the data has {len(id2label)} "
            f"({', '.join(list(id2label.values())[:5])}): name the model that it was made from"
        )


def check_own_tokenizer(args: ModelConfig, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse another tokenizer than the one that the checkpoint's embedding was trained with.

    Raises:
        ConfigError: the vocabularies differ.
    """
    if tokenizer.name_or_path == name:
        return
    try:
        own: Any = AutoTokenizer.from_pretrained(name, revision=args.model_revision)
    except (OSError, ValueError):
        return  # the checkpoint was saved without one: nothing to compare with
    if own.get_vocab() != tokenizer.get_vocab():
        raise ConfigError(
            f"the tokenizer {tokenizer.name_or_path} is not that of {name} ({len(tokenizer)} and {len(own)} tokens, "
            "with other ids): its ids would mean other words; leave out --tokenizer_name_or_path"
        )
