"""What `context_length` says is what a forward of each model type takes."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    FalconConfig,
    GPT2Config,
    LEDConfig,
    LlamaConfig,
    LlavaConfig,
    PreTrainedConfig,
    RobertaConfig,
    T5Config,
    WhisperConfig,
)
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hfstack.errors import ConfigError
from hfstack.models.context import POSITIONS_BEHIND_PADDING, check_block_size, context_length
from hfstack.models.gru import GRUConfig

VOCABULARY, POSITIONS = 60, 40

# Whatever a configuration calls its sizes: a field that it does not have is left out.
SIZES: dict[str, Any] = {
    **dict.fromkeys(
        "hidden_size d_model n_embd dim word_embed_proj_dim embedding_size emb_dim embed_dim "
        "moe_intermediate_size shared_expert_intermediate_size lru_width entity_emb_size".split(),
        32,
    ),
    **dict.fromkeys(
        "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim ffn_hidden_size n_inner d_ff "
        "hidden_dim d_inner".split(),
        64,
    ),
    **dict.fromkeys(
        "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers "
        "num_decoder_layers num_encoder_layers num_key_value_heads num_kv_heads mamba_expand "
        "num_experts_per_tok moe_topk".split(),
        2,
    ),
    **dict.fromkeys(
        "num_attention_heads n_head n_heads num_heads decoder_attention_heads rotary_dim "
        "encoder_attention_heads num_encoder_attention_heads num_decoder_attention_heads "
        "num_experts num_local_experts n_routed_experts time_step_rank mamba_n_heads".split(),
        4,
    ),
    **dict.fromkeys(
        "head_dim d_kv kv_channels dim_head d_head qk_rope_head_dim qk_nope_head_dim v_head_dim "
        "state_size mamba_d_state entity_vocab_size".split(),
        8,
    ),
    **dict.fromkeys("q_lora_rank kv_lora_rank mamba_d_head".split(), 16),
    **dict.fromkeys("n_group topk_group pad_token_id".split(), 1),
    **dict.fromkeys("eos_token_id decoder_start_token_id".split(), 2),
    "bos_token_id": 0,
    "vocab_size": VOCABULARY,
    "sliding_window": 16,
}
CONTEXTS = (
    "max_position_embeddings n_positions n_ctx max_seq_len model_max_length context_length "
    "max_target_positions max_encoder_position_embeddings max_decoder_position_embeddings "
    "max_sequence_length"
).split()
EXACT: dict[str, dict[str, Any]] = {
    "reformer": {"axial_pos_embds_dim": (16, 16), "axial_pos_shape": (5, 8), "is_decoder": True},
    "roc_bert": {"pronunciation_vocab_size": 9, "shape_vocab_size": 9},
    "xmod": {"default_language": "en_XX"},
    "led": {"attention_window": 4},
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8},
    "lilt": {"channel_shrink_ratio": 4, "hidden_size": 48, "intermediate_size": 48},
    "prophetnet": {"num_hidden_layers": None},
    "funnel": {"num_hidden_layers": None, "block_sizes": (1, 1)},
    "dory": {"sliding_window": None},  # of transformers 5.24; its window is wider than its rows
}
HEADS = {
    "CAUSAL_LM": AutoModelForCausalLM,
    "MASKED_LM": AutoModelForMaskedLM,
    "SEQ_TO_SEQ_CAUSAL_LM": AutoModelForSeq2SeqLM,
    "SEQUENCE_CLASSIFICATION": AutoModelForSequenceClassification,
}
TYPES = {
    model_type: auto_class
    for head, auto_class in reversed(HEADS.items())
    for model_type in getattr(modeling_auto, f"MODEL_FOR_{head}_MAPPING_NAMES")
}
# Fields that some families derive from others, or want larger: one set after the other is tried.
LEFT_OUT = (
    (),
    ("head_dim",),
    ("sliding_window",),
    ("head_dim", "rotary_dim", "num_key_value_heads"),
    ("layer_types", "layers_block_type", "num_key_value_heads"),
    ("layer_types", "layers_block_type", "v_head_dim"),
    ("num_hidden_layers", "max_position_embeddings"),
    ("num_hidden_layers",),
    ("v_head_dim", "num_experts_per_tok"),
)
USUAL = (
    "bart bert bloom deberta-v2 distilbert falcon gpt2 llama longformer mamba marian mpnet mpt "
    "opt roberta t5"
).split()
# The table of the one grows, and the other numbers positions within each cell of a table.
NEVER_FAIL = {"fsmt", "tapas"}


def tiny_config(model_type: str, without: tuple[str, ...] = ()) -> PreTrainedConfig:
    """Return a configuration of the type with small sizes and POSITIONS positions."""
    config_class = CONFIG_MAPPING[model_type]
    usual = config_class()
    changes = {name: size for name, size in SIZES.items() if hasattr(usual, name)}
    for name in CONTEXTS:
        if isinstance(getattr(usual, name, None), int):
            changes[name] = POSITIONS
    for name in ("layer_types", "layers_block_type", "attention_layers", "block_types"):
        if isinstance(kinds := getattr(usual, name, None), (list, tuple)) and kinds:
            changes[name] = (list(dict.fromkeys(kinds)) * 2)[:2]
    for name in ("text_config", "encoder", "decoder"):
        if isinstance(part := getattr(usual, name, None), PreTrainedConfig):
            changes[name] = tiny_config(part.model_type).to_dict()
    changes |= EXACT.get(model_type, {})
    kept = {name: changes[name] for name in changes if name not in without}
    return config_class(**{name: size for name, size in kept.items() if size is not None})


def tiny_model(model_type: str) -> torch.nn.Module | None:
    """Return a small model of the type, or None where these sizes do not make one."""
    for without in LEFT_OUT:
        try:
            config = tiny_config(model_type, without)
            with torch.device("meta"):
                model = TYPES[model_type].from_config(config)
            if sum(parameter.numel() for parameter in model.parameters()) > 3_000_000:
                return None
            model = TYPES[model_type].from_config(config).float().eval()
            forward(model, 12)
            return model
        except Exception:  # a family that wants sizes of its own: left to the others
            continue
    return None


def forward(model: Any, length: int) -> None:
    tokens = torch.randint(3, VOCABULARY, (1, length))
    decoder = {"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        model(input_ids=tokens, attention_mask=torch.ones_like(tokens), **decoder)


def learned_positions(model: torch.nn.Module) -> bool:
    """Whether there is a table of as many positions as the configuration states."""
    return any(
        isinstance(module, torch.nn.Embedding)
        and re.search(r"position|wpe", name)
        and POSITIONS <= module.num_embeddings <= POSITIONS + 2
        for name, module in model.named_modules()
    )


def check_context(model: Any) -> None:
    length = context_length(model.config, decoder=model.config.is_encoder_decoder)
    if length is None:
        assert not learned_positions(model)
        forward(model, 3 * POSITIONS)
        return

    assert POSITIONS - 3 <= length <= POSITIONS
    forward(model, length)
    if learned_positions(model) and model.config.model_type not in NEVER_FAIL:
        with pytest.raises((IndexError, RuntimeError, ValueError)):
            forward(model, length + 1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_forward_takes_the_whole_context_of_every_type() -> None:
    assert len(check_types(sorted(TYPES))) > 190


@pytest.mark.filterwarnings("ignore")
def test_a_forward_takes_the_whole_context_of_the_usual_types() -> None:
    assert check_types(USUAL) == USUAL


def check_types(types: list[str]) -> list[str]:
    """Return the types that a small model could be made of, and fail where one takes less."""
    wrong, built = {}, []
    for model_type in types:
        if (model := tiny_model(model_type)) is None:
            continue
        built.append(model_type)
        try:
            check_context(model)
        except BaseException as error:  # pytest.raises raises no Exception
            wrong[model_type] = f"{type(error).__name__}: {str(error)[:120]}"
    assert not wrong
    return built


def positions_behind_padding() -> Iterator[str]:
    """Find the model types whose code numbers positions from the padding id on."""
    package = Path(transformers.__file__).parent / "models"
    for file in sorted(package.glob("*/modeling_*.py")):
        text = file.read_text(encoding="utf-8")
        numbered = (
            "incremental_indices.long() + padding_idx" in text or "+ self.padding_idx\n" in text
        )
        # a table of exactly that many rows: others add rows for the offset, or compute them
        table = re.search(r"(Embedding|__init__)\(\s*config\.max_position_embeddings,", text)
        if numbered and table and "SinusoidalPositionalEmbedding(" not in text:
            yield file.parent.name


def test_no_type_with_positions_behind_the_padding_is_missing() -> None:
    folders = {"data2vec-text": "data2vec"}
    listed = {
        folders.get(name, name.removesuffix("_text_model").replace("-", "_"))
        for name in POSITIONS_BEHIND_PADDING
    }
    not_text = {"evolla", "pp_doclayout_v2"}  # proteins beside a Llama, pages of a scan
    assert set(positions_behind_padding()) - not_text == listed


def test_contexts_by_hand() -> None:
    assert context_length(RobertaConfig(max_position_embeddings=514)) == 512
    assert context_length(BertConfig()) == 512
    assert context_length(GPT2Config(n_positions=77)) == 77
    assert context_length(GRUConfig()) is None
    assert context_length(FalconConfig()) == 2048
    assert context_length(FalconConfig(alibi=True)) is None
    assert context_length(WhisperConfig()) == 448
    led = LEDConfig(max_encoder_position_embeddings=4096, max_decoder_position_embeddings=1024)
    assert (context_length(led), context_length(led, decoder=True)) == (4096, 1024)
    bart = BartConfig(max_position_embeddings=100)
    assert context_length(bart) == context_length(bart, decoder=True) == 100
    text = LlamaConfig(max_position_embeddings=96)
    assert context_length(LlavaConfig(text_config=text)) == 96


def test_a_field_that_the_class_does_not_know_bounds_nothing() -> None:
    config = T5Config(n_positions=512)  # as the published files of T5 have it
    assert config.n_positions == 512 and context_length(config) is None


def test_a_padding_id_that_leaves_no_position_is_refused() -> None:
    config = RobertaConfig(vocab_size=900, max_position_embeddings=514, pad_token_id=600)
    with pytest.raises(
        ConfigError, match="with pad_token_id 600 none of its 514 positions is left"
    ):
        context_length(config)


def test_blocks_must_fit_the_context() -> None:
    config = LlamaConfig(max_position_embeddings=64)
    assert check_block_size(64, config) == 64
    with pytest.raises(
        ConfigError, match="--block_size 65 is longer than the model's context of 64 tokens"
    ):
        check_block_size(65, config)
