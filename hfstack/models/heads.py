"""Load a transformer with a head for one task, newly initialised if it has none.

Classifiers, reward models, taggers, models that answer questions and encoder-decoders are loaded by
this, whole or with a LoRA adapter. An adapter trains and saves every module that its base does not
hold: upstream's default task would leave the random head as it is and not save it
(huggingface/trl#1379), and a pooler that the checkpoint lacks likewise, so that the saved adapter
would give other outputs after each loading.
"""

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from peft import LoraConfig, PeftConfig, PeftModel
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
from trl import ModelConfig

from hfstack.errors import CheckpointError, ConfigError, MissingExtraError
from hfstack.logs import get_logger
from hfstack.models.adapter_names import adapter_for
from hfstack.models.adapters import check_adapter_flags
from hfstack.models.contents import Contents, identify_model, not_found, refuse_lost_layers
from hfstack.models.loading import (
    architecture_config,
    find_architecture,
    load_checkpoint,
    put_adapter,
    quantization_of,
    require_model_name,
    why_unreadable,
)
from hfstack.models.sequence_head import register_classifier

logger = get_logger(__name__)


def read_config(
    args: ModelConfig, tokenizer: PreTrainedTokenizerBase, *, purpose: str
) -> tuple[Any, Path | None]:
    """Return the configuration of the named model, and the file of an architecture.

    Of an adapter of a language model it is that of its base.

    Args:
        tokenizer: an architecture gets its vocabulary.
        purpose: ends "holds no model that can ...".

    Raises:
        ConfigError: no model was named, or an adapter with a head of its own.
        CheckpointError: there is no model at that place.
    """
    name = require_model_name(args)
    if (config_file := find_architecture(name)) is not None:
        return architecture_config(config_file, tokenizer), config_file

    found = identify_model(name, args.model_revision)
    if found.adapter and found.kind != "causal language model":
        raise ConfigError(
            f"{name} is {found}, which cannot be trained further here: name the model that it was "
            "trained on, or merge it first (hfstack run merge_checkpoint)"
        )
    if found.adapter:
        args = replace(args, model_name_or_path=found.base, model_revision="main")
        return read_config(args, tokenizer, purpose=purpose)
    return checkpoint_config(args, purpose=purpose), None


def checkpoint_config(args: ModelConfig, *, purpose: str) -> PreTrainedConfig:
    """Return the configuration of a checkpoint; a CheckpointError when there is none."""
    name = args.model_name_or_path or ""
    try:
        return AutoConfig.from_pretrained(
            name, revision=args.model_revision, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(not_found(f"model that can {purpose}", name, error)) from error


def load_with_config(
    auto_class: Any,
    args: ModelConfig,
    config: PreTrainedConfig,
    config_file: Path | None = None,
    *,
    purpose: str,
) -> tuple[PreTrainedModel, list[str]]:
    """Load a checkpoint or initialise an architecture; also return what is new in it.

    These are the names of the modules that are newly initialised.

    Args:
        auto_class: one of the AutoModelFor... classes.
        config_file: of the architecture; None for a checkpoint.
        purpose: ends "holds no model that can ...".

    Raises:
        ConfigError: the architecture has no such head.
        CheckpointError: the checkpoint cannot be loaded.
        MissingExtraError: quantisation was asked for, and bitsandbytes is not installed.
    """
    name = args.model_name_or_path or ""
    if auto_class is AutoModelForSequenceClassification:
        register_classifier(config)
    if config_file is not None:
        try:
            model = auto_class.from_config(
                config, attn_implementation=args.attn_implementation, trust_remote_code=False
            )
        except ValueError as error:
            raise ConfigError(
                f"{config_file} cannot {purpose}: {' '.join(str(error).split())[:160]}"
            ) from error
        return model, _module_names(key for key, _ in model.named_parameters())

    quantization = quantization_of(args)
    if quantization and importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError("bitsandbytes", "quantization")

    found = identify_model(name, args.model_revision)
    try:
        model, report = auto_class.from_pretrained(
            found.base or name,
            config=config,
            revision="main" if found.adapter else args.model_revision,
            dtype=args.dtype,
            attn_implementation=args.attn_implementation,
            quantization_config=quantization,
            # Quantised weights cannot be moved later.
            device_map={"": PartialState().device} if quantization else None,
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
    except Exception as error:
        cause = why_unreadable(error, auto_class, found.base or name, args.model_revision)
        raise CheckpointError(
            f"{name} holds no model that can {purpose}: it is {found}: {cause}"
        ) from error

    refuse_lost_layers(model, report["missing_keys"], name)
    new_modules = _module_names(report["missing_keys"])
    if new_modules:
        logger.info("%s: newly initialised %s", found, ", ".join(new_modules))
    if found.adapter:
        _copy_adapted_body(model, args, found)
    return model, new_modules


def _copy_adapted_body(model: PreTrainedModel, args: ModelConfig, found: Contents) -> None:
    """Give a model the weights below the head that an adapter makes of its base."""
    plain = replace(args, use_peft=False, load_in_4bit=False, load_in_8bit=False)
    adapted = load_checkpoint(AutoModelForCausalLM, plain, found.kind)
    body: Any = model.base_model
    body.load_state_dict(cast(Any, adapted.base_model).state_dict())


def lora_beside_head(
    args: ModelConfig,
    new_modules: Sequence[str],
    task_type: str = "SEQ_CLS",
    *,
    model: PreTrainedModel | None = None,
) -> LoraConfig | None:
    """Return the adapter that --use_peft asks for, or None.

    It trains and saves every module that is new. None also where the model is an adapter that has
    the head already.

    Args:
        args: the description of the model.
        new_modules: of `load_with_config`.
        task_type: as peft calls the task.
        model: that the adapter has to fit; None where nothing is adapted yet.

    Raises:
        ConfigError: for an architecture, whose random weights an adapter does not hold; flags that
            need --use_peft; names of modules that the model does not have.
    """
    check_adapter_flags(args)
    if not args.use_peft:
        return None

    name = require_model_name(args)
    if find_architecture(name) is not None:
        raise ConfigError(
            f"--use_peft needs trained weights, but {name} is an architecture: name a checkpoint"
        )
    found = identify_model(name, args.model_revision)
    if found.adapter and found.kind != "causal language model":
        return None  # it is trained further
    if found.adapter:
        raise ConfigError(
            f"--use_peft: {name} is {found}, and the base of a second one would be {found.base} "
            "without it: merge it first (hfstack run merge_checkpoint), or train all weights"
        )
    saved = sorted({*(args.lora_modules_to_save or []), *new_modules}) or None
    named = replace(args, lora_task_type=task_type, lora_modules_to_save=saved)
    from trl import get_peft_config  # late, as in quantization_of

    found = get_peft_config(named) if model is None else adapter_for(named, model)
    return cast(LoraConfig, found)


def load_adapter_model(
    folder: Path,
    task_type: str,
    kind: str,
    load_base: Callable[[str], tuple[PreTrainedModel, Sequence[str]]],
    *,
    trainable: bool = False,
) -> PeftModel:
    """Load an adapter with its head onto its base, in evaluation mode.

    Args:
        folder: where the adapter was saved.
        task_type: PEFT's name of the task, such as SEQ_CLS.
        kind: what the adapter must be, for the message.
        load_base: given the name of the base, loads it; also returns the modules that the base's
            checkpoint lacks, which the adapter must hold.
        trainable: the adapter is trained further.

    Raises:
        CheckpointError: the adapter was trained for another task, names no base or one that is not
            there, or was saved without a module that the base lacks too.
    """
    found = identify_model(str(folder))
    config = PeftConfig.from_pretrained(str(folder))
    if config.task_type != task_type:
        raise CheckpointError(
            f"{folder} is {found}, not of a {kind}: merge it into its base first, then name the "
            "merged model"
        )

    try:
        identify_model(found.base)
    except CheckpointError as error:
        raise CheckpointError(f"{folder} is an adapter without its base: {error}") from None
    base, new_modules = load_base(found.base)

    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        saved = " ".join(file.keys())
    lost = [module for module in new_modules if module.rpartition(".")[2] not in saved]
    if lost:
        raise CheckpointError(
            f"{folder} was saved without {', '.join(lost)}, which its base does not hold either: "
            "train it again"
        )
    return put_adapter(base, str(folder), trainable=trainable).eval()


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the padding id, by which a head finds the end of a text.

    A tokenizer without a pad token gets its eos token as one.

    Raises:
        ConfigError: it has neither.
    """
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    if end is not None and pad in (None, end):
        logger.info(
            "the tokenizer has no pad token of its own: it pads with its eos, so that of a text "
            "that ends with it the output is read one token before"
        )
        tokenizer.pad_token, pad = tokenizer.eos_token, end

    if not isinstance(pad, int):
        raise ConfigError(
            f"the tokenizer {tokenizer.name_or_path or ''} has neither a pad nor an eos token, by "
            "which the head finds the end of a text: set tokenizer.pad_token and save it"
        )
    return pad


def require_equal_ends(config: PreTrainedConfig, rows: Iterable[Sequence[int]]) -> None:
    """Refuse rows that the head of an encoder-decoder cannot read.

    It reads the last end token, and cannot read rows together that hold different numbers of it.

    Args:
        config: of the classifier; all but encoder-decoders read any row.
        rows: token ids.

    Raises:
        ConfigError: a row holds no end token, or not as many as the others.
    """
    # the decoder of such a family, kept alone, becomes its encoder-decoder here
    is_such = config.model_type in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    if not config.is_encoder_decoder and not is_such:
        return
    end: Any = getattr(config, "eos_token_id", None)
    counts = {list(row).count(end) for row in rows}
    if len(counts) > 1 or 0 in counts:
        found = ", ".join(map(str, sorted(counts)))
        raise ConfigError(
            f"a classifier of the family {config.model_type} reads the end token (id {end}) of "
            f"each text, of which these texts hold {found}: use an encoder, a causal model, or a "
            "tokenizer that ends each text with one"
        )


def refuse_unreadable_rows(model: PreTrainedModel, *, purpose: str, **options: Any) -> None:
    """Refuse an encoder-decoder whose head cannot read token ids alone.

    Some families need the decoder's first token from their configuration, or take no `use_cache`.

    Args:
        model: loaded for the task; families without a decoder read any row.
        purpose: ends "... cannot".
        options: of the forward pass that training makes.

    Raises:
        ConfigError: with what the family says.
    """
    config: Any = model.config
    if not config.is_encoder_decoder:
        return
    end = getattr(config.get_text_config(), "eos_token_id", None)
    row = [0, end if isinstance(end, int) else 1]
    token_ids = torch.tensor([row], device=model.device)

    try:
        with torch.no_grad():
            model(input_ids=token_ids, attention_mask=torch.ones_like(token_ids), **options)
    # each family fails in its own way: an attribute, an argument, or a refusal of its own
    except (AttributeError, TypeError, ValueError, NotImplementedError) as error:
        said = str(error).splitlines()[-1].lstrip(" )")  # a module may stand before it
        raise ConfigError(
            f"{type(model).__name__} cannot {purpose}: {said}; use an encoder or a causal model"
        ) from error


def _module_names(parameters: Iterable[str]) -> list[str]:
    """Return the modules that these parameters belong to."""
    return sorted({name.rpartition(".")[0] for name in parameters})


# Names that configurations give to the dropout of attention weights.
_ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")


def set_attention_dropout(config: PreTrainedConfig, share: float) -> None:
    """Set the dropout of attention weights, whatever the architecture calls it.

    On a CPU torch's fused attention knows no dropout: with 0.1, as BERT has it, the whole matrix of
    weights is materialised, which makes a step of 512 tokens three times as long.

    Raises:
        ConfigError: the share is not in [0, 1).
    """
    if not 0 <= share < 1:
        raise ConfigError(f"--attention_dropout must be in [0, 1), got {share}")

    known = config.to_dict()
    for field in _ATTENTION_DROPOUT:
        if field in known:
            setattr(config, field, share)


def check_own_tokenizer(args: ModelConfig, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse a tokenizer that the checkpoint's embedding was not trained with.

    Raises:
        ConfigError: the vocabularies differ.
    """
    if tokenizer.name_or_path == name:
        return
    try:
        own: Any = AutoTokenizer.from_pretrained(
            name, revision=args.model_revision, trust_remote_code=False
        )
    except (OSError, ValueError):
        return  # the checkpoint was saved without one: nothing to compare with

    if own.get_vocab() != tokenizer.get_vocab():
        raise ConfigError(
            f"the tokenizer {tokenizer.name_or_path} is not that of {name} ({len(tokenizer)} and "
            f"{len(own)} tokens, with other ids): its ids would mean other words; "
            "leave out --tokenizer_name_or_path"
        )
