"""Load an encoder-decoder from an architecture, a checkpoint or an adapter.

T5, BART, Marian and similar.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from torch import Tensor
from transformers import (
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
)
from trl import ModelConfig

from hfstack.errors import CheckpointError, ConfigError
from hfstack.logs import get_logger
from hfstack.models.contents import ADAPTER_FILE
from hfstack.models.context import context_length
from hfstack.models.heads import (
    check_own_tokenizer,
    load_adapter_model,
    load_with_config,
    padding_id,
    read_config,
)
from hfstack.models.loading import check_vocabulary, load_tokenizer
from hfstack.models.output_head import without_adapter
from hfstack.tasks.causal_lm.sampling import describe_settings
from hfstack.tasks.shared.task_models import TASK_FILE, load_finished, read_task_file
from hfstack.tokens.special_tokens import IGNORED_LABEL, as_token_ids, end_token_ids

logger = get_logger(__name__)

_USUAL_SOURCE, _USUAL_TARGET = 512, 128  # tokens, where nothing is asked for
# Fields of a GenerationConfig that are no setting of decoding: where it comes from, and a second
# name of the longest text.
_NO_DECODING = ("transformers_version", "_from_model_config", "max_new_tokens")
# What a model begins, ends and pads with. BART's is forced to end a text at its limit, mBART's to
# begin one in its language.
_TOKENS = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"),
    *("forced_bos_token_id", "forced_eos_token_id"),
)
# What transformers would add to sampling that a file asks for without them.
_WHOLE_DISTRIBUTION = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
_UNSET_LENGTH = 10**9  # tokenizers without a limit say 1e30


def load_seq2seq(args: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Return an encoder-decoder to be trained.

    From a config.json the weights are newly initialised (seed them first), with the tokenizer's
    vocabulary; the decoder begins with the padding token, as T5's and Marian's do, and ends with
    the tokenizer's end, or separator, token.

    Raises:
        ConfigError: no model was named, it has no encoder or no decoder, it is an adapter, or the
            tokenizer is not its.
        CheckpointError: there is no model at that place.
        MissingExtraError: quantisation was asked for, and bitsandbytes is not installed.
    """
    purpose, name = "read a text and generate one", args.model_name_or_path or ""
    config, config_file = read_config(args, tokenizer, purpose=purpose)
    _check_encoder_decoder(config, name)

    if config_file is not None:
        set_special_tokens(config, tokenizer)

    model, new_modules = load_with_config(
        AutoModelForSeq2SeqLM, args, config, config_file, purpose=purpose
    )
    if config_file is not None:
        return model

    check_vocabulary(model, tokenizer, name)
    check_own_tokenizer(args, tokenizer, name)
    if new_modules:
        logger.warning("%s lacks %s: these are newly initialised", name, ", ".join(new_modules[:5]))

    # The loss shifts the labels by this token, and generation begins with it.
    if getattr(model.config, "decoder_start_token_id", None) is None:
        model.config.decoder_start_token_id = padding_id(tokenizer)
        cast(Any, model.generation_config).decoder_start_token_id = padding_id(tokenizer)

    return model


def decoder_shift(model: Any) -> Callable[..., Tensor]:
    """Return the function that makes the decoder's inputs (B, T) of labels (B, T).

    It is the family's own where it shows one; M2M-100's and Blenderbot's shift inside the forward
    pass alone, by the start token.
    """
    own = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if own is not None:
        return own

    start = model.config.decoder_start_token_id

    def shift(labels: Tensor) -> Tensor:
        shifted = labels.roll(1, dims=1)
        shifted[:, 0] = start
        return shifted.masked_fill(shifted == IGNORED_LABEL, model.config.pad_token_id)

    return shift


def set_special_tokens(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set a new model's padding, end and start tokens to those of the tokenizer.

    Its family's usual ids are other tokens of this vocabulary.

    Raises:
        ConfigError: the tokenizer has neither an end token nor a separator, or nothing to pad with.
    """
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if end is None:
        raise ConfigError(
            f"the tokenizer {tokenizer.name_or_path} has no end token: a decoder could not learn "
            "to stop"
        )

    plain = cast(Any, config)
    plain.eos_token_id = end
    plain.pad_token_id = plain.decoder_start_token_id = padding_id(tokenizer)

    fields = config.to_dict()
    if "forced_eos_token_id" in fields:
        plain.forced_eos_token_id = end  # what a text gets that reaches the limit
    if "decoder_vocab_size" in fields:
        plain.decoder_vocab_size = plain.vocab_size


def required_end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that end a text, the one that the model was trained with first.

    Raises:
        ConfigError: neither model nor tokenizer has one.
    """
    trained = as_token_ids(getattr(model.config, "eos_token_id", None))
    ends = list(dict.fromkeys([*trained, *end_token_ids(model, tokenizer)]))
    if not ends:
        raise ConfigError(
            f"neither {model.config.model_type} nor its tokenizer has an end token: name it in "
            "config.json"
        )

    return ends


def text_lengths(
    source: int | None,
    target: int | None,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[int, int]:
    """Return the longest source and target in tokens: as asked, or what can be read.

    Where nothing is asked for they are at most 512 and 128.

    Positions bound BART and Marian. T5 counts distances instead: it reads any length, and the limit
    that its tokenizer names only bounds what is taken when nothing is asked for.

    Raises:
        ConfigError: more was asked for than the model has positions, or less than 4.
    """
    asked = {
        "--max_source_length": (source, _USUAL_SOURCE, context_length(config)),
        "--max_target_length": (target, _USUAL_TARGET, context_length(config, decoder=True)),
    }

    lengths = []
    for flag, (length, usual, longest) in asked.items():
        if length is None:
            stated = tokenizer.model_max_length or _UNSET_LENGTH
            lengths.append(min(int(stated), longest or _UNSET_LENGTH, usual))
            continue

        if length < 4:
            raise ConfigError(f"{flag} must be at least 4 tokens, got {length}")

        if longest is not None and length > longest:
            raise ConfigError(
                f"{flag} {length} is longer than the model's {longest} positions: "
                f"use {flag} {longest}"
            )

        lengths.append(length)

    return lengths[0], lengths[1]


def set_decoding(
    model: Any,
    *,
    max_length: int | None,
    num_beams: int | None,
    usual_length: int,
    source: str | Path | GenerationConfig | None = None,
) -> dict[str, Any]:
    """Set how the model generates, also after it was saved, and return what was set.

    Nothing is inherited from the checkpoint but its tokens: what its generation_config chooses is
    logged, and can be asked for by `source`.

    Args:
        max_length: tokens of the longest text, with the one that the decoder begins with; None for
            that of `source`, else `usual_length`.
        num_beams: None for that of `source`, else 1.
        source: more settings of decoding, as upstream's `--generation_config` names them: a file, a
            folder, a Hub id.

    Raises:
        ConfigError: there are less than 1 beam or 2 tokens, or `source` is no generation
            configuration.
    """
    if num_beams is not None and num_beams < 1:
        raise ConfigError(f"--generation_num_beams must be at least 1, got {num_beams}")
    if max_length is not None and max_length < 2:
        raise ConfigError(f"--generation_max_length must be at least 2 tokens, got {max_length}")

    given = _read_generation_config(source) if source is not None else {}
    decoding = {name: value for name, value in given.items() if name not in _NO_DECODING}
    if decoding.get("do_sample"):
        decoding = _WHOLE_DISTRIBUTION | decoding
    decoding["max_length"] = max_length or given.get("max_length") or usual_length
    decoding["num_beams"] = num_beams or given.get("num_beams") or 1

    _decode_only_by(model, decoding)
    return decoding


def _decode_only_by(model: Any, decoding: dict[str, Any]) -> None:
    """Replace a model's generation_config by these settings and its own tokens."""
    holder = without_adapter(model)
    own = holder.generation_config
    tokens = {name: getattr(own, name, None) for name in _TOKENS}
    others = {
        name: value
        for name, value in own.to_diff_dict().items()
        if name not in _TOKENS and decoding.get(name) != value
    }
    holder.generation_config = GenerationConfig(**{**tokens, **decoding})

    if found := describe_settings(GenerationConfig(**others)):
        logger.info(
            "the model's own settings of decoding are not used: %s; texts are generated by %s, and "
            "--generation_config can name others, such as the model's",
            found,
            ", ".join(f"{name} {value}" for name, value in sorted(decoding.items())),
        )


def _read_generation_config(source: str | Path | GenerationConfig) -> dict[str, Any]:
    """Return what a generation configuration sets beside the defaults."""
    try:
        named = source if isinstance(source, GenerationConfig) else str(source)
        return Seq2SeqTrainer.load_generation_config(named).to_diff_dict()
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"--generation_config {source}: {reason}") from error


def load_finished_seq2seq(args: ModelConfig) -> tuple[Any, PreTrainedTokenizerBase, dict[str, Any]]:
    """Return a finished model in evaluation mode, its tokenizer, and its `task.json`.

    The model may be an adapter; the last is {} without that file.

    Raises:
        CheckpointError: there is no such model, or the base of an adapter is gone.
        ConfigError: it has no encoder.
    """
    folder = Path(args.model_name_or_path or "")
    model: Any
    if not (folder / ADAPTER_FILE).is_file():
        model, tokenizer, info = load_finished(args, "ConditionalGeneration")
        _check_encoder_decoder(model.config, str(folder))
    else:
        tokenizer = load_tokenizer(args)
        task = read_task_file(folder)
        if task is None:
            raise CheckpointError(
                f"{folder} is an adapter that the seq2seq recipe has not saved: it has no "
                f"{TASK_FILE}"
            )
        info = task

        def load_base(name: str) -> tuple[PreTrainedModel, list[str]]:
            named = replace(args, model_name_or_path=name, model_revision="main")
            return load_seq2seq(named, tokenizer), []

        model = load_adapter_model(folder, "SEQ_2_SEQ_LM", "encoder-decoder", load_base)

    if decoding := info.get("decoding"):
        _decode_only_by(model, decoding)
    else:
        _say_own_decoding(model, str(folder))
    return model, tokenizer, info


def _say_own_decoding(model: Any, name: str) -> None:
    """Log how a model of others generates, and let it finish its texts."""
    settings = without_adapter(model).generation_config
    if settings.max_length is None and settings.max_new_tokens is None:
        # upstream would end each text at 20 tokens
        limit = context_length(model.config, decoder=True) or _USUAL_SOURCE
        settings.max_length = min(limit, _USUAL_SOURCE)
    found = describe_settings(settings)
    logger.info("texts are generated as the generation_config of %s says: %s", name, found)


def _check_encoder_decoder(config: PreTrainedConfig, name: str) -> None:
    if not config.is_encoder_decoder:
        raise ConfigError(
            f"{name} is {config.model_type}, which is no encoder-decoder: name one such as T5, "
            "BART or Marian (a decoder alone is trained by the recipe sft)"
        )
