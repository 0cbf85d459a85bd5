"""Load tokenizers and language models of a checkpoint, the Hub or a config.json.

TRL's ModelConfig is the description of a model; nothing here runs code from a repository, and only
safetensors weights are read.
"""

import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from huggingface_hub.errors import StrictDataclassError
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import cached_file
from trl import ModelConfig

import hfstack.models.gru  # noqa: F401 - registers the recurrent architectures
from hfstack.disk import read_json_file
from hfstack.errors import CheckpointError, ConfigError
from hfstack.logs import get_logger
from hfstack.models.config_ranges import refuse_impossible_numbers
from hfstack.models.contents import (
    ADAPTER_FILE,
    Contents,
    ModelKind,
    check_kind,
    identify_model,
    not_found,
    refuse_changed_base,
    refuse_file,
    refuse_lost_layers,
    require_trained,
)
from hfstack.models.size_limits import refuse_more_than_memory, refuse_too_many_modules
from hfstack.shipped import ARCHITECTURES, find_shipped

logger = get_logger(__name__)

# What upstream raises on values of a config.json that no model can have.
_REFUSALS = (
    *(OSError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError),
    StrictDataclassError,
)

# What upstream raises on files of weights that it cannot read, or that fit no such model.
_UNREADABLE = (OSError, ValueError, SafetensorError)


# What peft raises besides on values of an adapter_config.json, of which it checks few.
_NO_ADAPTER = (*_UNREADABLE, RuntimeError, KeyError, TypeError, AttributeError, re.error)


def load_tokenizer(
    args: ModelConfig, tokenizer_name_or_path: str | None = None
) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the model, or another one by name.

    Raises:
        ConfigError: an architecture (config.json) has no tokenizer of its own and none was named.
        CheckpointError: there is no tokenizer at that place.
    """
    name = tokenizer_name_or_path or require_model_name(args)
    if name.endswith(".json"):
        raise ConfigError(
            f"--model_name_or_path {name} is an architecture without a tokenizer; name one with "
            "--tokenizer_name_or_path (the output directory of the tokenizer recipe, or a Hub id)"
        )

    refuse_file(name)
    revision = args.model_revision if tokenizer_name_or_path is None else "main"
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
        if tokenizer_name_or_path is not None:
            _warn_of_other_ids(args, tokenizer, name)
        return tokenizer
    # It reads the config.json of the model as well.
    except Exception as error:
        # The library tokenizers knows no other class for a file that it cannot read.
        if type(error) is not Exception and not isinstance(error, (*_REFUSALS, RecursionError)):
            raise
        if tokenizer_name_or_path is None and (Path(name) / ADAPTER_FILE).is_file():
            logger.info("%s is an adapter without a tokenizer: its base's is used", name)
            return load_tokenizer(replace(args, model_name_or_path=identify_model(name).base))
        raise CheckpointError(not_found("tokenizer", name, error)) from error


def _warn_of_other_ids(args: ModelConfig, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Warn where a tokenizer that was named gives other ids than the model's own."""
    model = args.model_name_or_path
    if model is None or model.endswith(".json") or model == name:
        return
    try:
        own = load_tokenizer(args).get_vocab()
    except CheckpointError:
        return  # without one of its own there is nothing to compare

    vocabulary = tokenizer.get_vocab()
    other = [token for token, number in own.items() if vocabulary.get(token, number) != number]
    if other:
        logger.warning(
            "--tokenizer_name_or_path %s gives %d of %d tokens other ids than the tokenizer of %s, "
            "such as %r: its embedding has learned those of its own; leave the option out, unless "
            "the embedding is to be learned anew",
            *(name, len(other), len(own), model, other[0]),
        )


def load_causal_lm(
    args: ModelConfig, tokenizer: PreTrainedTokenizerBase, *, new_head: bool = False
) -> PreTrainedModel:
    """Return a causal language model whose vocabulary is the tokenizer's.

    From a config.json the weights are newly initialised (seed them first), with the tokenizer's
    vocabulary size and special tokens. From a checkpoint or the Hub they are loaded, quantised when
    `--load_in_4bit` or `--load_in_8bit` is set.

    An adapter is merged into its base, which has to be there. With `--use_peft`, and on quantised
    weights, it stays one (a PeftModel), and with `--use_peft` it can be trained further.

    Args:
        new_head: the model is trained, so a head that the checkpoint lacks may be newly
            initialised, which is logged.

    Raises:
        ConfigError: no model was named, the tokenizer has more tokens than the embedding has rows,
            or the architecture reads later tokens.
        CheckpointError: there is no model at that place, it is of another kind or without its head,
            it has no safetensors weights, or it is an adapter whose base is not there.
    """
    return _load_language_model(
        AutoModelForCausalLM,
        args,
        tokenizer,
        "causal language model",
        new_head=new_head,
        quantization=quantization_of(args),
    )


def quantization_of(args: ModelConfig) -> Any:
    """Return the quantisation that the flags ask for, or None."""
    if not (args.load_in_4bit or args.load_in_8bit):
        return None
    # Late: it brings pandas and datasets, which a model that is only asked does not need.
    from trl import get_quantization_config

    return get_quantization_config(args)


def load_masked_lm(
    args: ModelConfig, tokenizer: PreTrainedTokenizerBase, *, new_head: bool = False
) -> PreTrainedModel:
    """Return a masked language model; the rest is as in `load_causal_lm`."""
    return _load_language_model(
        AutoModelForMaskedLM, args, tokenizer, "masked language model", new_head=new_head
    )


def require_model_name(args: ModelConfig) -> str:
    """Return the name of the model; a ConfigError where none was given."""
    if args.model_name_or_path is None:
        raise ConfigError(
            "--model_name_or_path is required: a Hub id, a checkpoint directory, or a config.json"
        )
    return args.model_name_or_path


def is_masked_lm(args: ModelConfig) -> bool:
    """Return whether the checkpoint was saved as a masked language model.

    Raises:
        CheckpointError: there is no model at that place.
    """
    found = identify_model(require_model_name(args), args.model_revision)
    return found.kind == "masked language model"


def _load_language_model(
    auto_class: Any,
    args: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    kind: ModelKind,
    *,
    new_head: bool,
    quantization: Any = None,
) -> PreTrainedModel:
    """Load a checkpoint, or initialise an architecture."""
    name = require_model_name(args)
    if (config_file := find_architecture(name)) is not None:
        config = architecture_config(config_file, tokenizer)
        try:
            model = auto_class.from_config(
                config, attn_implementation=args.attn_implementation, trust_remote_code=False
            )
        except torch.OutOfMemoryError:
            raise
        except (*_REFUSALS, RuntimeError) as error:
            raise ConfigError(f"{config_file}: {' '.join(str(error).split())[:200]}") from error
    else:
        model = load_checkpoint(auto_class, args, kind, new_head=new_head, quantized=quantization)

    if kind == "causal language model":
        _refuse_encoder(model, name)
    check_vocabulary(model, tokenizer, name)
    return model


def load_checkpoint(
    auto_class: Any,
    args: ModelConfig,
    kind: ModelKind,
    *,
    new_head: bool = False,
    quantized: Any = None,
) -> PreTrainedModel:
    """Load the weights of a model of one kind, or those of an adapter and its base.

    Args:
        auto_class: the AutoModelFor... class of that kind.
        new_head: a head that the weights lack may be newly initialised.
        quantized: the quantisation, or None.

    Raises:
        CheckpointError: as `load_causal_lm`.
    """
    name = require_model_name(args)
    found = check_kind(name, (kind, "model without a head"), args.model_revision)
    if found.adapter:
        return _load_adapter(auto_class, args, found, kind, quantized=quantized)

    try:
        model, report = auto_class.from_pretrained(
            name,
            revision=args.model_revision,
            dtype=args.dtype,
            attn_implementation=args.attn_implementation,
            quantization_config=quantized,
            # Quantised weights cannot be moved later.
            device_map={"": PartialState().device} if quantized else None,
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
    except Exception as error:
        cause = why_unreadable(error, auto_class, name, args.model_revision)
        raise CheckpointError(not_found(kind, name, cause)) from error

    refuse_lost_layers(model, report["missing_keys"], name)
    if line := require_trained(report["missing_keys"], found, name, new_head=new_head):
        logger.warning("%s", line)
    return model


def why_unreadable(
    error: Exception, auto_class: Any, name: str, revision: str | None = None
) -> str:
    """Return in one line why weights were not loaded.

    Raises again what is no fault of the files: a lack of memory, a failing device, or a bug.

    Args:
        error: what loading raised.
        auto_class: the class that loaded.
        name: of the model, whose config.json is tried without its weights.
        revision: on the Hub.
    """
    if "ignore_mismatched_sizes" in str(error):
        return "its weights have other shapes than such a model: they are of another task or size"
    if isinstance(error, _UNREADABLE) and not isinstance(error, RuntimeError):
        return " ".join(str(error).split())[:200]

    try:
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
        with torch.device("meta"):
            auto_class.from_config(config, trust_remote_code=False)
    except Exception as refusal:
        said = " ".join(str(refusal).split())[:200]
        return f"its config.json describes no model ({type(refusal).__name__}: {said})"

    config_file = cached_file(name, "config.json", revision=revision)
    if config_file and (odd := _find_odd_file(Path(config_file).parent)):
        return odd
    raise error


def _find_odd_file(folder: Path) -> str | None:
    """Return which file beside the weights upstream could not read, and why.

    Args:
        folder: of a model, on the disk or in the cache of the Hub.
    """
    for path in sorted([folder / "generation_config.json", *folder.glob("*.index.json")]):
        try:
            values = read_json_file(path) if path.is_file() else {}
        except (OSError, ValueError) as error:
            return f"{path.name} cannot be read: {error}"
        if not isinstance(values, dict):
            return f"{path.name} is not a JSON object"
        if not path.is_file() or path.name == "generation_config.json":
            continue

        for key in ("metadata", "weight_map"):
            if not isinstance(values.get(key), dict):
                return f"{path.name} has no object {key!r}"
        if not all(isinstance(shard, str) for shard in values["weight_map"].values()):
            return f"{path.name} names a file of weights that is no text"
    return None


def _load_adapter(
    auto_class: Any, args: ModelConfig, found: Contents, kind: ModelKind, *, quantized: Any
) -> PreTrainedModel:
    """Load the base that an adapter names, and the adapter on it."""
    name = require_model_name(args)
    on_base = replace(args, model_name_or_path=found.base, model_revision="main", use_peft=False)
    try:
        base = load_checkpoint(auto_class, on_base, kind, new_head=False, quantized=quantized)
    except CheckpointError as error:
        raise CheckpointError(f"{name} is an adapter without its base: {error}") from None

    adapted = put_adapter(base, name, revision=args.model_revision, trainable=args.use_peft)

    # Rounded to few bits, merged weights would lose the adapter.
    if args.use_peft or quantized:
        logger.info("%s is an adapter on %s", name, found.base)
        return cast(PreTrainedModel, adapted)

    if adapted.peft_config["default"].is_prompt_learning:
        raise CheckpointError(
            f"{name} is {found} of virtual tokens, which cannot be merged into {found.base}: name "
            "an adapter of weights, such as LoRA"
        )
    logger.info("%s is an adapter: merged into its base %s", name, found.base)
    return merge_into_base(adapted).requires_grad_(True)  # peft froze the base


def put_adapter(
    base: PreTrainedModel, name: str, *, revision: str | None = None, trainable: bool = False
) -> PeftModel:
    """Put an adapter on its base, and prove that each tensor has found a place.

    PEFT takes what fits: of a base with fewer layers the rest of an adapter is passed over, of one
    with more the other layers get new weights, in silence or with a warning.

    Raises:
        CheckpointError: it has no safetensors weights, or was trained on another base, or on other
            weights of it.
    """
    refuse_changed_base(name, str(base.name_or_path))
    how: Any = {"revision": revision, "is_trainable": trainable}
    try:
        cached_file(name, "adapter_model.safetensors", revision=revision)
        with warnings.catch_warnings(action="ignore"):
            adapted = PeftModel.from_pretrained(base, name, **how)
            found = adapted.load_adapter(name, "default", **how)
    except torch.OutOfMemoryError:
        raise
    except _NO_ADAPTER as error:  # no weights, those of another base, or an odd adapter_config.json
        cause = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise CheckpointError(
            f"{name} cannot be put on its base {base.name_or_path}: {cause}"
        ) from error

    for fact, keys in (
        ("which has no place for", found.unexpected_keys),
        ("for which it lacks", found.missing_keys),
    ):
        if keys:
            raise CheckpointError(
                f"{name} cannot be put on its base {base.name_or_path}, {fact} {len(keys)} of its "
                f"tensors, such as {keys[0]}: it was trained on another one; name that in its "
                f"{ADAPTER_FILE}"
            )
    return adapted


def merge_into_base(model: PeftModel) -> PreTrainedModel:
    """Return the base with the active adapter merged into it.

    Where an adapter changes one of two tied embeddings, each gets weights of its own first: merged
    into the shared ones it would change both, and so another model would come out.
    """
    base: Any = model.get_base_model()
    ends = [base.get_input_embeddings(), base.get_output_embeddings()]
    layers: list[Any] = [
        end.get_base_layer() if isinstance(end, BaseTunerLayer) else end for end in ends
    ]

    adapted = any(isinstance(end, BaseTunerLayer) for end in ends)
    if adapted and layers[1] is not None and layers[0].weight is layers[1].weight:
        layers[1].weight = torch.nn.Parameter(layers[0].weight.detach().clone())
        for config in (base.config, base.config.get_text_config()):
            config.tie_word_embeddings = False
        logger.info("the adapter changes one of two tied embeddings: each is saved by itself")

    merge: Any = model.merge_and_unload
    return cast(PreTrainedModel, merge())


def _refuse_encoder(model: PreTrainedModel, name: str) -> None:
    """Refuse an encoder as a causal language model: it would read what it predicts."""
    config: Any = model.config
    decoder = getattr(config, "is_decoder", False) or getattr(config, "causal", False)
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not decoder:
        raise CheckpointError(
            f"{name} is an encoder ({config.model_type}), whose tokens read the later ones that a "
            "causal language model predicts: name a decoder, or set is_decoder in its config.json"
        )


def find_architecture(name: str) -> Path | None:
    """Return the config.json that `name` means, or None for a checkpoint or a Hub id.

    A shipped architecture is found by its file name from any folder, as
    `recipes/architectures/llama-5m.json`.

    Raises:
        ConfigError: a .json that exists neither here nor among the shipped ones.
    """
    if not name.endswith(".json"):
        return None
    path = find_shipped(name, ARCHITECTURES)
    if path is not None:
        return path

    known = ", ".join(sorted(path.stem for path in ARCHITECTURES.glob("*.json")))
    raise ConfigError(f"--model_name_or_path {name}: no such file; shipped architectures: {known}")


def architecture_config(config_file: Path, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """Read a config.json and set the tokenizer's vocabulary size and special tokens."""
    try:
        values, _ = PreTrainedConfig.get_config_dict(config_file)
        refuse_too_many_modules(values, config_file, raises=ConfigError, folder=None)
        refuse_more_than_memory(values, config_file, raises=ConfigError)
        refuse_impossible_numbers(values, config_file, raises=ConfigError)
        config = AutoConfig.from_pretrained(config_file, trust_remote_code=False)
    except ConfigError:
        raise
    except _REFUSALS as error:
        raise ConfigError(
            f"{config_file} is not a model configuration: {' '.join(str(error).split())[:200]}"
        ) from error

    config.vocab_size = vocabulary_size(tokenizer)
    config.bos_token_id = tokenizer.bos_token_id
    config.eos_token_id = tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    return config


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the embedding rows that a tokenizer needs: its largest id plus one.

    Ids may have holes.
    """
    return max(tokenizer.get_vocab().values()) + 1


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse a tokenizer that gives ids which the model's embedding does not have."""
    try:
        rows = len(torch.as_tensor(model.get_input_embeddings().weight))
    except (NotImplementedError, AttributeError):  # CANINE hashes, Perceiver's is a bare tensor
        raise ConfigError(
            f"{name} is {type(model).__name__}, which has no table of token embeddings, so that "
            "its vocabulary cannot be checked: name a model that has one"
        ) from None
    needed = vocabulary_size(tokenizer)
    if needed > rows:
        raise ConfigError(
            f"the tokenizer has {needed} tokens but the embedding of {name} has {rows} rows; "
            "use the model's own tokenizer, or train one with --vocab_size of at most that"
        )
