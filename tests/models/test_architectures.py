"""Architectures as dictionaries: what is read, refused, counted and built."""

from pathlib import Path

import pytest

from hfstack.errors import ConfigError
from hfstack.models.architectures import build_causal_lm, count_costs, read_templates, to_config


def test_templates_carry_the_tokenizers_vocabulary(tiny_tokenizer) -> None:
    found = read_templates(["llama-1m.json", "gru-5m.json"], tiny_tokenizer)
    assert list(found) == ["llama", "gru"]
    for values in found.values():
        assert values["vocab_size"] == 300 and values["eos_token_id"] == tiny_tokenizer.eos_token_id
        assert "transformers_version" not in values
        parameters, body, flops, method = count_costs(values, 32)
        assert parameters == sum(p.numel() for p in build_causal_lm(values).parameters())
        assert 0 < body < parameters and flops > 6 * body and method == "formula"


def test_what_is_refused(tiny_tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--architectures names llama twice"):
        read_templates(["llama-1m.json", "llama-5m.json"], tiny_tokenizer)
    with pytest.raises(ConfigError, match="--architectures gpt2: give a config.json"):
        read_templates(["gpt2"], tiny_tokenizer)
    (tmp_path / "odd.json").write_text('{"model_type": "no_such_thing"}')
    with pytest.raises(ConfigError, match="is not a model configuration"):
        read_templates([str(tmp_path / "odd.json")], tiny_tokenizer)
    with pytest.raises(ConfigError, match="no model_type 'no_such_thing' with these values"):
        to_config({"model_type": "no_such_thing"})
