"""Make a pretrained model ready for fine-tuning: its pad token and its adapters.

An adapter is what `peft` trains beside frozen weights: LoRA (Hu et al. 2021), DoRA (Liu et al.
2024), or QLoRA (Dettmers et al. 2023), whose frozen weights are quantised.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig

from hfstack.disk import flush_to_disk, put_in_place
from hfstack.errors import ConfigError, MissingExtraError
from hfstack.logs import get_logger
from hfstack.models.adapter_names import adapter_for
from hfstack.models.contents import identify_model
from hfstack.models.loading import (
    find_architecture,
    load_causal_lm,
    merge_into_base,
    require_model_name,
    vocabulary_size,
)
from hfstack.tokens.special_tokens import end_token_ids

logger = get_logger(__name__)

PAD_TOKENS = (
    "<|pad|>",
    "<pad>",
    "[PAD]",
    "<|padding|>",
    "<|finetune_right_pad_id|>",
    "<|fim_pad|>",
)


def check_adapter_settings(
    args: ModelConfig, *, sharded: bool = False, merge_adapter: bool = False
) -> None:
    """Refuse settings of adapters that contradict each other or miss a library.

    Args:
        args: the description of the model.
        sharded: the weights are spread over processes, by FSDP or DeepSpeed.
        merge_adapter: the adapter is merged into the weights at the end.

    Raises:
        ConfigError: quantised weights, DoRA or merging without an adapter; merging shards.
        MissingExtraError: quantisation was asked for and bitsandbytes is not installed.
    """
    check_adapter_flags(args)
    if merge_adapter and not args.use_peft:
        raise ConfigError(
            "--merge_adapter: there is no adapter to merge; add --use_peft, or drop --merge_adapter"
        )
    if merge_adapter and sharded:
        raise ConfigError(
            "--merge_adapter cannot merge into weights that are sharded; merge the saved adapter "
            "later"
        )


def check_adapter_flags(args: ModelConfig) -> None:
    """Refuse flags of an adapter without --use_peft, or without their library.

    Raises:
        ConfigError: quantised weights or DoRA without an adapter.
        MissingExtraError: bitsandbytes is not installed.
    """
    if args.use_dora and not args.use_peft:
        raise ConfigError("--use_dora is a kind of adapter; add --use_peft")
    if not (args.load_in_4bit or args.load_in_8bit):
        return
    flag = "--load_in_4bit" if args.load_in_4bit else "--load_in_8bit"
    if not args.use_peft:
        raise ConfigError(
            f"{flag}: quantised weights cannot be trained; add --use_peft to train an adapter on "
            "them"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError("bitsandbytes", "quantization")


def new_adapter(
    args: ModelConfig, model: PreTrainedModel, *, adapts_head: bool = True
) -> PeftConfig | None:
    """Return the adapter that --use_peft adds; None where the model is one already.

    That one is trained further, as it was set up. The other arguments and errors are those of
    `adapter_for`.
    """
    name = require_model_name(args)
    if args.use_peft and find_architecture(name) is None:
        found = identify_model(name, args.model_revision)
        if found.adapter:
            logger.info("%s is trained further: its own settings hold, not those of --lora_*", name)
            return None
    return adapter_for(args, model, adapts_head=adapts_head)


def give_pad_token(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, *, may_grow: bool = True
) -> str:
    """Give padding a token of its own, which ends nothing, and return it.

    A token that was meant for padding is taken from the vocabulary; otherwise `<|pad|>` is added,
    and the embedding gets a row for it where it has none to spare. The row is never trained, since
    padding is masked. Where the embedding may not grow, the unknown token pads.

    Args:
        may_grow: the embedding may get a row; not when an adapter alone is saved, which would not
            fit its base again.

    Raises:
        ConfigError: the embedding would have to grow and may not.
    """
    ends = end_token_ids(model, tokenizer)
    pad = cast(int | None, tokenizer.pad_token_id)
    if pad is None or pad in ends:
        before = tokenizer.pad_token
        rows = len(torch.as_tensor(model.get_input_embeddings().weight))
        _choose_pad_token(tokenizer, ends, largest=None if may_grow else rows)
        _fit_embedding(model, vocabulary_size(tokenizer))
        was = f"was {before!r}, which also ends texts" if before is not None else "had none"
        logger.info("pad token %r (the tokenizer %s)", tokenizer.pad_token, was)

    model.config.pad_token_id = tokenizer.pad_token_id
    # a model with a head for classes generates nothing, and has none
    settings: Any = getattr(model, "generation_config", None)
    if settings is not None:
        settings.pad_token_id = tokenizer.pad_token_id
    return str(tokenizer.pad_token)


def _choose_pad_token(
    tokenizer: PreTrainedTokenizerBase, ends: Sequence[int], *, largest: int | None
) -> None:
    """Set a pad token that is in the vocabulary and ends nothing, or add one.

    Args:
        largest: rows of an embedding that may not grow; None where it may.
    """
    vocabulary = tokenizer.get_vocab()
    known = [token for token in PAD_TOKENS if token in vocabulary and vocabulary[token] not in ends]
    unused = [token for token in PAD_TOKENS if token not in vocabulary]
    if known or largest is None or vocabulary_size(tokenizer) < largest:
        tokenizer.add_special_tokens({"pad_token": [*known, *unused][0]})
        return

    # masked wherever it pads, so that a text with an unknown token is read as before
    unknown: Any = tokenizer.unk_token_id
    if unknown is None or unknown in ends:
        raise ConfigError(
            "the tokenizer has no pad token of its own, and the embedding no row for one, which "
            "neither an adapter nor a second model beside this one would have: sft adds one, with "
            "--merge_adapter or where it trains all weights; name its model then"
        )
    tokenizer.pad_token = tokenizer.unk_token


def _fit_embedding(model: PreTrainedModel, needed: int) -> None:
    """Give the embedding a row for every token."""
    rows = len(torch.as_tensor(model.get_input_embeddings().weight))
    if needed > rows:
        model.resize_token_embeddings(needed, mean_resizing=False)
        logger.info("the embedding grew from %d to %d rows, for the pad token", rows, needed)


def name_magnitudes(folder: Path) -> None:
    """Name the magnitudes of a saved DoRA adapter so that every reader finds them.

    PEFT 0.21 writes `lora_magnitude_vector` and reads it with `.weight` behind it or not;
    transformers 5.23 takes the name as it stands, finds no such parameter, and initialises the
    magnitudes newly, in silence.
    """
    file = folder / SAFETENSORS_WEIGHTS_NAME
    if not file.is_file() or not PeftConfig.from_pretrained(str(folder)).to_dict().get("use_dora"):
        return

    weights = load_file(file)
    renamed = {
        f"{name}.weight" if name.endswith("lora_magnitude_vector") else name: weight
        for name, weight in weights.items()
    }
    if renamed.keys() == weights.keys():
        return

    # in its place at once, so that a reader finds the old file or the new one
    partial = file.with_suffix(".partial")
    save_file(renamed, partial, metadata={"format": "pt"})
    flush_to_disk(partial)
    put_in_place(partial, file)


def merge_adapter(model: PeftModel, args: ModelConfig, folder: Path) -> PreTrainedModel:
    """Return the model that an adapter is merged into; `folder` holds the adapter.

    Quantised weights are loaded again in full: merging into four bits would round the adapter away.
    """
    if not (args.load_in_4bit or args.load_in_8bit):
        return merge_into_base(model)

    found = identify_model(require_model_name(args), args.model_revision)
    settings = ModelConfig(
        model_name_or_path=found.base or args.model_name_or_path,
        model_revision="main" if found.adapter else args.model_revision,
        dtype="bfloat16",
        attn_implementation=args.attn_implementation,
    )
    tokenizer = AutoTokenizer.from_pretrained(
        args.model_name_or_path, revision=args.model_revision, trust_remote_code=False
    )
    base = load_causal_lm(settings, tokenizer)

    # The embedding may have grown by a pad token.
    trained: Any = model.get_base_model()
    rows = len(torch.as_tensor(trained.get_input_embeddings().weight))
    if rows != len(torch.as_tensor(base.get_input_embeddings().weight)):
        base.resize_token_embeddings(rows, mean_resizing=False)
    return merge_into_base(PeftModel.from_pretrained(cast(Any, base), str(folder)))
