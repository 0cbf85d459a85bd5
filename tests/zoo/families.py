"""Build a tiny newly initialised model of every family of the installed transformers."""

import copy
import shutil
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    logging,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)

from tests.zoo.texts import SENTENCES

VOCABULARY = 320
CONTEXT = 256
SECONDS = 40  # a family that takes longer to build is too large
PARAMETERS = 8_000_000

WIDTHS = (
    "hidden_size d_model n_embd dim word_embed_proj_dim embedding_size emb_dim lru_width "
    "embedding_dim"
)
LAYERS = (
    "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers "
    "num_decoder_layers num_encoder_layers num_blocks"
)
HEADS = (
    "num_attention_heads n_head n_heads num_heads decoder_attention_heads "
    "encoder_attention_heads num_decoder_attention_heads num_encoder_attention_heads"
)
INNER = (
    "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim ffn_hidden_size n_inner d_ff "
    "d_inner intermediate_size_mlp shared_intermediate_size"
)
CONTEXTS = (
    "max_position_embeddings n_positions n_ctx max_seq_len seq_length max_sequence_length "
    "max_target_positions"
)
EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 32,
    "expert_ffn_hidden_size": 32,
    "first_k_dense_replace": 1,
}
ATTENTION = {
    "num_key_value_heads": 2,
    "num_kv_heads": 2,
    "head_dim": 8,
    "d_head": 8,
    "d_kv": 8,
    "kv_channels": 8,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "rotary_dim": 4,
    "sliding_window": 128,
    "index_n_heads": 2,
    "index_head_dim": 8,
    "index_topk": 64,
}
STATE_SPACE = {
    "state_size": 8,
    "ssm_state_size": 8,
    "time_step_rank": 4,
    "mamba_d_state": 8,
    "mamba_n_heads": 4,
    "mamba_num_heads": 4,
    "mamba_d_head": 16,
    "mamba_head_dim": 16,
    "mamba_d_ssm": 64,
    "mamba_dt_rank": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
    "chunk_size": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
OTHERS = {
    "vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
    "laurel_rank": 8,
    "initializer_range": 0.1,
    "init_std": 0.1,
    "attention_dropout": 0.0,
    "ngram_vocab_size_base": 1000,
    "encoder_hash_byte_group_vocab": 100,
}
SMALL: dict[str, Any] = {
    **dict.fromkeys(WIDTHS.split(), 32),
    **dict.fromkeys(LAYERS.split(), 2),
    **dict.fromkeys(HEADS.split(), 4),
    **dict.fromkeys(INNER.split(), 64),
    **dict.fromkeys(CONTEXTS.split(), CONTEXT),
    **EXPERTS,
    **ATTENTION,
    **STATE_SPACE,
    **OTHERS,
}

# Where the numbers above do not fit together: what a family needs instead.
MULTI_HEAD_LATENT: dict[str, Any] = {"num_key_value_heads": 4}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
DECODERS: dict[str, dict[str, Any]] = {  # where an encoder stands beside the decoder
    "prophetnet": {"is_decoder": True, "is_encoder_decoder": False},
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {"vocab_size": 328},  # its tokenizer adds a token of its own
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
    "gemma4_unified_assistant": {"hidden_size_per_layer_input": 0},
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE}},
    "bailing_hybrid": {"head_dim": 16},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1, "expand": 2},
    "nemotron_h": {"layers_block_type": ["linear_attention", "full_attention", "moe", "mlp"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "bamba": {"attn_layer_indices": [1]},
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [16, 16]},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "roc_bert": {"pronunciation_vocab_size": 30, "shape_vocab_size": 30},
    "zaya": {"num_experts_per_tok": 1},
    "gemma3n_text": {"num_kv_shared_layers": 0, "intermediate_size": [64, 64]},
    "gemma4_text": {"per_layer_config": {}},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    # of its 8 layers before and 8 after the loop, two in all would leave -14 to be looped over
    "dory": {"num_hidden_layers": 3, "n_input_layers": 1, "n_output_layers": 1},
    "lilt": {"hidden_size": 48},  # six coordinates of a box share it
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8, "visual_embed": False},
    "luke": {"entity_vocab_size": 50, "entity_emb_size": 16},
    "mistral4": {"num_key_value_heads": 4},
    "perceiver": {
        "num_latents": 16,
        "d_latents": 32,
        "num_self_attends_per_block": 2,
        "num_self_attention_heads": 4,
        "num_cross_attention_heads": 4,
        "qk_channels": 32,
        "v_channels": 32,
    },
}


CAUSAL, ENCODER, ENCODER_DECODER = "causal", "encoder", "encoder-decoder"
# of each kind, the classes that build a family, and the families that each knows: the first that
# knows it is taken
KINDS: dict[str, list[tuple[Any, Any]]] = {
    CAUSAL: [(AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)],
    ENCODER: [
        (AutoModelForMaskedLM, MODEL_FOR_MASKED_LM_MAPPING_NAMES),
        # without a head, which each recipe adds
        (AutoModel, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES),
        (AutoModel, MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES),
        (AutoModel, MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES),
    ],
    ENCODER_DECODER: [(AutoModelForSeq2SeqLM, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)],
}


def families(kind: str = CAUSAL) -> list[str]:
    """Return the model types that the kind's AutoModelFor... know.

    A causal model with a head for classes is no encoder: it is measured among the causal ones.
    """
    known = {family for _, names in KINDS[kind] for family in names}
    if kind == ENCODER:
        known -= set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(MODEL_FOR_MASKED_LM_MAPPING_NAMES)
    return sorted(known)


def auto_class(kind: str, family: str) -> Any:
    """Return the AutoModelFor... that a family is built with."""
    return next(auto for auto, names in KINDS[kind] if family in names)


def zoo_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with tokens of its own for padding, begin and end."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        mask_token="<mask>",
    )


def build(
    family: str, folder: Path, tokenizer: PreTrainedTokenizerFast, kind: str = CAUSAL
) -> str | None:
    """Save a tiny model of a family with its tokenizer; return why that was not possible."""
    logging.set_verbosity_error()
    reasons: list[str] = []
    try:
        attempts = list(_attempts(family, tokenizer, kind))
    except Exception as error:  # not even its configuration can be made
        return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    for settings in attempts:
        try:
            with at_most(SECONDS), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = _initialise(auto_class(kind, family), CONFIG_MAPPING[family](**settings))
                inputs = {"input_ids": torch.arange(5, 17).repeat(2, 1)}  # (2, 12)
                if model.config.is_encoder_decoder:
                    inputs["decoder_input_ids"] = inputs["input_ids"]
                with torch.no_grad():
                    logits = logits_or_states(model(**inputs))
                if not torch.isfinite(logits).all():
                    raise ValueError("its logits are not finite")
                model.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
                auto_class(kind, family).from_pretrained(folder)
            return None
        except Exception as error:  # each family fails in its own way; the first reason is kept
            shutil.rmtree(folder, ignore_errors=True)  # saved, and not read back
            reasons.append(f"{type(error).__name__}: {' '.join(str(error).split())[:120]}")
    return reasons[0] if reasons else "no configuration"


def logits_or_states(output: Any) -> torch.Tensor:
    """Return a model's logits, or without a head its last hidden states."""
    return output.logits if "logits" in output else output.last_hidden_state


def _initialise(auto_class: Any, config: PreTrainedConfig) -> Any:
    """Return the model, after its size was counted without its weights."""
    with torch.device("meta"):
        empty = auto_class.from_config(copy.deepcopy(config))
    count = sum(parameter.numel() for parameter in empty.parameters())
    if count > PARAMETERS:
        raise ValueError(f"{count:,} parameters are no tiny model")
    torch.manual_seed(0)
    return auto_class.from_config(config).float().eval()


def _attempts(
    family: str, tokenizer: PreTrainedTokenizerFast, kind: str
) -> Iterator[dict[str, Any]]:
    """Yield settings of a family's configuration, the likeliest first."""
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "decoder_start_token_id": tokenizer.bos_token_id,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own = FAMILIES.get(family, {}) | (DECODERS.get(family, {}) if kind == CAUSAL else {})
        default = _default(CONFIG_MAPPING[family], own)
    settings = fitting(default, SMALL | special, kind)
    for change in ({}, MULTI_HEAD_LATENT, {"head_dim": ...}, {"layer_types": ...}):
        for more in ({}, {"sliding_window": ..., "rotary_dim": ...}):
            merged = settings | change | more | own
            yield {name: value for name, value in merged.items() if value is not ...}


def _default(config_class: Any, own: dict[str, Any]) -> PreTrainedConfig:
    """Return a configuration without settings, or with those that the family needs."""
    try:
        return config_class()
    except Exception:  # some families have no default that they accept
        return config_class(**own)


def fitting(default: PreTrainedConfig, values: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return the values that a configuration has fields for, also in its text model's part."""
    known = default.to_dict()
    settings = {name: value for name, value in values.items() if name in known}
    if kind == CAUSAL and known.get("is_decoder") is False:
        settings["is_decoder"] = True
    for name in ("layer_types", "layers_block_type", "attention_layers", "block_types"):
        kinds = known.get(name)
        if isinstance(kinds, list) and kinds:
            settings[name] = (list(dict.fromkeys(kinds)) * 2)[:2]
    for name in ("mlp_layer_types", "no_rope_layers", "activation_sparsity_pattern"):
        if isinstance(known.get(name), list):
            settings[name] = known[name][-2:]

    # composite models: the text model is what is made small, the others are made so as they can
    parts = "text_config vision_config audio_config encoder decoder text_encoder"
    for name in parts.split():
        part = getattr(default, name, None)
        if isinstance(part, PreTrainedConfig):
            settings[name] = fitting(part, values, kind) | {"model_type": part.model_type}
    return settings


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Stop what takes more CPU seconds."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"it takes more than {seconds} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
