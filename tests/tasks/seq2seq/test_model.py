"""Encoder-decoders from architectures and checkpoints: tokens, lengths, decoding, refusals."""

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    T5Config,
    set_seed,
)
from trl import ModelConfig

from hfstack.errors import CheckpointError, ConfigError
from hfstack.models.heads import lora_beside_head
from hfstack.tasks.seq2seq.model import (
    decoder_shift,
    load_finished_seq2seq,
    load_seq2seq,
    required_end_ids,
    set_decoding,
    set_special_tokens,
    text_lengths,
)
from tests.tiny_encoder import tiny_bert_tokenizer


@pytest.mark.parametrize("name", ["t5-5m", "bart-5m"])
def test_an_architecture_gets_the_tokens_of_any_tokenizer(name: str, tiny_tokenizer) -> None:
    bert = tiny_bert_tokenizer()
    for tokenizer, end in (
        (tiny_tokenizer, tiny_tokenizer.eos_token_id),
        (bert, bert.sep_token_id),
    ):
        set_seed(0)
        model = load_seq2seq(ModelConfig(f"{name}.json"), tokenizer)
        assert model.config.vocab_size == len(tokenizer)
        for config in (model.config, model.generation_config):
            assert (config.eos_token_id, config.decoder_start_token_id) == (
                end,
                tokenizer.pad_token_id,
            )
            assert getattr(config, "forced_eos_token_id", None) in (None, end)
        assert required_end_ids(model, tokenizer) == [end]
    assert name != "t5-5m" or model.config.scale_decoder_outputs, (
        "a tied output is scaled, as T5's is"
    )


def test_a_family_that_shifts_in_its_forward_pass_alone_is_shifted_so() -> None:
    set_seed(0)
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1}
    model = M2M100ForConditionalGeneration(
        M2M100Config(vocab_size=40, **sizes, encoder_attention_heads=2, decoder_attention_heads=2)
    ).eval()
    assert not hasattr(model, "prepare_decoder_input_ids_from_labels")
    source, labels = torch.tensor([[5, 6, 2], [7, 2, 1]]), torch.tensor([[8, 9, 2], [9, 2, -100]])
    inside = model(input_ids=source, labels=labels).loss
    given = model(input_ids=source, labels=labels, decoder_input_ids=decoder_shift(model)(labels))
    assert torch.equal(inside, given.loss)


def test_marian_takes_its_own_tokens_and_is_a_finished_model(
    tmp_path: Path, tiny_tokenizer
) -> None:
    config = MarianConfig(
        vocab_size=300,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        max_position_embeddings=32,
    )
    set_special_tokens(config, tiny_tokenizer)
    assert config.forced_eos_token_id == config.eos_token_id == tiny_tokenizer.eos_token_id
    assert (
        config.decoder_start_token_id == tiny_tokenizer.pad_token_id
        and config.decoder_vocab_size == 300
    )
    MarianMTModel(config).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    model, tokenizer, info = load_finished_seq2seq(ModelConfig(str(tmp_path)))
    assert isinstance(model, MarianMTModel) and not model.training and info == {}
    assert text_lengths(None, None, model.config, tokenizer) == (32, 32)
    assert load_seq2seq(ModelConfig(str(tmp_path)), tokenizer).config.model_type == "marian"


def test_lengths_are_bounded_by_positions_and_not_by_distances(tiny_tokenizer) -> None:
    t5, bart = T5Config(), BartConfig(max_position_embeddings=100)
    assert text_lengths(None, None, t5, tiny_tokenizer) == (512, 128)
    assert text_lengths(2000, 600, t5, tiny_tokenizer) == (2000, 600)
    assert text_lengths(None, 50, bart, tiny_tokenizer) == (100, 50)
    with pytest.raises(
        ConfigError, match="--max_target_length 101 is longer than the model's 100 positions"
    ):
        text_lengths(None, 101, bart, tiny_tokenizer)


def test_decoding_is_kept_with_the_model(
    tmp_path: Path, tiny_tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    model = load_seq2seq(ModelConfig("t5-5m.json"), tiny_tokenizer)
    usual = {"max_length": None, "num_beams": None, "usual_length": 30}
    assert set_decoding(model, **usual) == {"max_length": 30, "num_beams": 1}
    assert set_decoding(model, **usual | {"num_beams": 4}) == {"max_length": 30, "num_beams": 4}
    assert set_decoding(model, **usual | {"max_length": 20}) == {"max_length": 20, "num_beams": 1}
    more = tmp_path / "more.json"
    more.write_text('{"no_repeat_ngram_size": 3, "num_beams": 5}')
    expected = {"max_length": 30, "num_beams": 5, "no_repeat_ngram_size": 3}
    assert set_decoding(model, **usual | {"source": more}) == expected
    with pytest.raises(ConfigError, match="--generation_config .*nowhere.json: "):
        set_decoding(model, **usual | {"source": tmp_path / "nowhere.json"})
    model.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    (tmp_path / "task.json").write_text(json.dumps({"decoding": expected}))
    caplog.clear()
    with caplog.at_level("INFO"):
        found, _, _ = load_finished_seq2seq(ModelConfig(str(tmp_path)))
    assert "not used" not in caplog.text
    assert {name: getattr(found.generation_config, name) for name in expected} == expected
    assert found.generation_config.eos_token_id == tiny_tokenizer.eos_token_id, (
        "what the file leaves open stays"
    )

    # a model of others goes by its own file, and finishes its texts: upstream stops at 20 tokens
    (tmp_path / "task.json").unlink()
    other = tmp_path / "generation_config.json"
    other.write_text(json.dumps({"num_beams": 3, "decoder_start_token_id": 0}))
    with caplog.at_level("INFO"):
        found, _, _ = load_finished_seq2seq(ModelConfig(str(tmp_path)))
    assert found.generation_config.max_length == 512
    assert "says: max_length 512, num_beams 3" in caplog.text


def test_refusals(tmp_path: Path, tiny_llama: Path, tiny_tokenizer) -> None:
    with pytest.raises(ConfigError, match="--model_name_or_path is required"):
        load_seq2seq(ModelConfig(), tiny_tokenizer)
    with pytest.raises(ConfigError, match="llama, which is no encoder-decoder"):
        load_seq2seq(ModelConfig(str(tiny_llama)), AutoTokenizer.from_pretrained(tiny_llama))
    with pytest.raises(ConfigError, match="which is no encoder-decoder"):
        load_seq2seq(ModelConfig("llama-1m.json"), tiny_tokenizer)
    with pytest.raises(CheckpointError, match="nowhere"):
        load_seq2seq(ModelConfig(str(tmp_path / "nowhere")), tiny_tokenizer)
    with pytest.raises(CheckpointError):
        load_finished_seq2seq(ModelConfig(str(tiny_llama)))
    with pytest.raises(ConfigError, match="t5-5m.json is an architecture: name a checkpoint"):
        lora_beside_head(ModelConfig("t5-5m.json", use_peft=True), [], "SEQ_2_SEQ_LM")
    with pytest.raises(CheckpointError, match="no model 'google-t5/t5-small' here or at"):
        lora_beside_head(ModelConfig("google-t5/t5-small", use_peft=True), [], "SEQ_2_SEQ_LM")

    size = {
        f"{side}_{name}": 1 for side in ("encoder", "decoder") for name in ("layers", "ffn_dim")
    }
    heads = {"encoder_attention_heads": 1, "decoder_attention_heads": 1}
    config = BartConfig(vocab_size=len(tiny_tokenizer), d_model=4, **size, **heads)
    tiny = str(tmp_path / "bart")
    BartForConditionalGeneration(config).save_pretrained(tiny)
    lora = lora_beside_head(ModelConfig(tiny, use_peft=True), [], "SEQ_2_SEQ_LM")
    assert lora is not None and lora.task_type == "SEQ_2_SEQ_LM"
    assert lora_beside_head(ModelConfig(tiny), [], "SEQ_2_SEQ_LM") is None


def test_a_checkpoint_s_own_decoding_is_not_inherited(
    tmp_path: Path, tiny_tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    model = load_seq2seq(ModelConfig("t5-5m.json"), tiny_tokenizer)
    model.generation_config.update(
        num_beams=3, length_penalty=2.0, no_repeat_ngram_size=2, min_length=9, max_new_tokens=7
    )
    model.generation_config.forced_eos_token_id = tiny_tokenizer.eos_token_id
    own = tmp_path / "own.json"
    model.generation_config.to_json_file(own)

    with caplog.at_level("INFO"):
        found = set_decoding(model, max_length=None, num_beams=None, usual_length=12)
    assert found == {"max_length": 12, "num_beams": 1}
    assert "not used: length_penalty 2.0, max_new_tokens 7, min_length 9, no_rep" in caplog.text
    config = model.generation_config
    assert (config.length_penalty, config.no_repeat_ngram_size, config.max_new_tokens) == (
        None,
    ) * 3
    assert config.forced_eos_token_id == config.eos_token_id == tiny_tokenizer.eos_token_id

    # asked for by name it is used
    named = set_decoding(model, max_length=None, num_beams=None, usual_length=12, source=own)
    assert (named["num_beams"], named["length_penalty"], named["min_length"]) == (3, 2.0, 9)

    # transformers would sample from the 50 likeliest tokens
    own.write_text('{"do_sample": true, "temperature": 0.5}')
    named = set_decoding(model, max_length=None, num_beams=None, usual_length=12, source=own)
    assert (model.generation_config.top_k, named["top_p"], named["temperature"]) == (0, 1.0, 0.5)
