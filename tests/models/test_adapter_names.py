"""Names that an adapter would pass over are refused, and the others are what is adapted."""

from pathlib import Path

import pytest
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from trl import ModelConfig

from hfstack.errors import ConfigError
from hfstack.models.adapter_names import adapter_for
from hfstack.models.heads import lora_beside_head


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_target_modules": ["q_proj", "vproj"]}, "vproj: the model has no such module; its "),
        ({"lora_target_modules": ["attention"]}, "attention: .* linear layers are q_proj, k_proj"),
        ({"lora_target_modules": [".*query"]}, "query: PEFT cannot put this adapter on Llama"),
        ({"lora_target_modules": ["mlp"]}, "mlp.*: PEFT cannot put this adapter on Llama"),
        ({"lora_target_modules": ["lm_head"]}, "leaves an adapter of it out; name it in --lora_m"),
        ({"lora_modules_to_save": ["head"]}, "--lora_modules_to_save head: the model has no such"),
        ({"lora_target_parameters": ["experts.up"]}, "experts.up: LlamaForCausalLM has no para"),
    ],
)
def test_a_name_that_would_be_passed_over_is_refused(
    tiny_llama: Path, settings: dict, message: str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    with pytest.raises(ConfigError, match=message):
        adapter_for(ModelConfig("a", use_peft=True, **settings), model, adapts_head=False)


# what is merged is compared with what was trained when it is saved
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize(
    ("targets", "adapted"),
    [
        (None, {"q_proj", "v_proj"}),
        (["k_proj"], {"k_proj"}),  # PEFT takes one name for a pattern of the whole
        (["mlp.up_proj"], {"up_proj"}),
        ([".*mlp.up_proj"], {"up_proj"}),
        (["q_proj", "embed_tokens"], {"q_proj", "embed_tokens"}),
        (["lm_head"], {"lm_head"}),
    ],
)
def test_what_is_named_is_what_is_adapted(
    tiny_llama: Path, targets: list[str] | None, adapted: set[str]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    config = adapter_for(ModelConfig("a", use_peft=True, lora_target_modules=targets), model)
    assert config is not None
    found = get_peft_model(model, config)
    trained = {name.split(".lora_")[0] for name, p in found.named_parameters() if p.requires_grad}
    assert {name.rpartition(".")[2] for name in trained} == adapted


def test_a_head_that_the_task_does_not_have_is_refused(tiny_llama: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_llama, num_labels=1)
    args = ModelConfig(str(tiny_llama), use_peft=True, lora_target_modules=["q_proj", "lm_head"])
    with pytest.raises(ConfigError, match="lm_head: the model has no such module; .*, score"):
        lora_beside_head(args, ["score"], model=model)
