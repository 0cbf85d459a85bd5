"""Filling masks: the right position, several masks, either spelling, and what is refused."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast, set_seed

from hfstack.errors import DataError
from hfstack.tasks.masked_lm.fill_mask import fill_masks, fill_pairs


@pytest.fixture(scope="module")
def masked():
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "the",
        "capital",
        "of",
        "france",
        "is",
        "paris",
        "city",
    ]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, mask_token="[MASK]", pad_token="[PAD]", unk_token="[UNK]"
    )
    set_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    return BertForMaskedLM(config).eval(), tokenizer


def test_masks_are_filled_at_their_positions(masked) -> None:
    model, tokenizer = masked
    text = "the [MASK] of france is [MASK]"
    fillings = fill_masks(model, tokenizer, [text], top_k=3)
    assert [(f.mask, f.position) for f in fillings] == [(0, 1), (1, 5)]
    with torch.no_grad():
        expected = model(**tokenizer(text, return_tensors="pt")).logits[0].softmax(-1)
    for filling in fillings:
        values, ids = expected[filling.position].topk(3)
        assert [word for word, _ in filling.candidates] == tokenizer.convert_ids_to_tokens(
            ids.tolist()
        )
        assert [p for _, p in filling.candidates] == pytest.approx(values.tolist(), rel=1e-5)


def test_text_without_a_mask(masked, tiny_tokenizer) -> None:
    with pytest.raises(DataError, match=r"prompt 'the city' has no \[MASK\] to fill"):
        fill_masks(masked[0], masked[1], ["the city"])
    with pytest.raises(DataError, match="no mask token"):
        fill_masks(masked[0], tiny_tokenizer, ["a [MASK]"])


def test_either_spelling_of_a_mask_is_understood(masked) -> None:
    model, tokenizer = masked
    one, other = (
        fill_masks(model, tokenizer, [f"the {mask} of"])[0] for mask in ("[MASK]", "<mask>")
    )
    assert one.candidates == other.candidates and other.text == "the <mask> of"
    assert fill_pairs(model, tokenizer=tokenizer, prompts=["the [MASK]"])[0][1].startswith(
        "mask 1: "
    )


def test_a_text_longer_than_the_model_reads_is_refused(masked) -> None:
    with pytest.raises(DataError, match="has 601 tokens, but the model reads 512"):
        fill_masks(masked[0], masked[1], ["the " * 600 + "[MASK]"])


def test_rows_are_filled_as_predict_does(tmp_path) -> None:
    from trl import ModelConfig

    from hfstack.tasks.masked_lm.fill_mask import load_fill_predictor
    from tests.tiny_encoder import save_tiny_bert

    folder = save_tiny_bert(tmp_path / "bert")
    load = {"columns": (None, None), "batch_size": 4, "max_length": 8}
    predict = load_fill_predictor(ModelConfig(str(folder)), **load)
    (one, two) = predict([{"text": "the [MASK] was kind"}, {"text": "[MASK] and <mask>"}])
    assert [mask["position"] for mask in two["masks"]] == [1, 3] and len(
        one["masks"][0]["candidates"]
    ) == 5
    with pytest.raises(
        DataError, match="row 1 has no column 'text', found body; set --text_column"
    ):
        predict([{"body": "a"}])
    rows = [{"text": "the owl " * 5 + "[MASK]"}, {"text": "[MASK]"}, {"text": "owl"}, {"text": ""}]
    long, fitting, without, empty = predict(rows)
    assert "has 13 tokens, but the model reads 8: shorten it" in long["problem"]
    assert len(fitting["masks"]) == 1
    assert without == {"problem": "prompt 'owl' has no [MASK] to fill"}
    assert empty == {"problem": "text is empty"}
