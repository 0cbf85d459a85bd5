"""Pairs of texts as an encoder-decoder reads them: ends, truncation, targets, columns, batches."""

import logging

import pytest
import torch
from datasets import Dataset
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from hfstack.data.places import BadRows
from hfstack.errors import ConfigError, DataError
from hfstack.tasks.seq2seq.data import (
    Pair,
    collate_pairs,
    column_value,
    encode_ended,
    encode_sources_and_targets,
    read_sources_and_targets,
)
from tests.tiny_encoder import tiny_bert_tokenizer


@pytest.fixture(scope="module")
def ending_tokenizer(tiny_tokenizer) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with T5's habit of ending each text by itself."""
    copy = PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer.backend_tokenizer.from_str(
            tiny_tokenizer.backend_tokenizer.to_str()
        ),
        eos_token=tiny_tokenizer.eos_token,
        pad_token=tiny_tokenizer.pad_token,
    )
    end = (copy.eos_token, copy.eos_token_id)
    copy.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end[0]}", special_tokens=[end]
    )
    return copy


def test_every_text_ends_once_whatever_the_tokenizer_does(tiny_tokenizer, ending_tokenizer) -> None:
    texts, end = (
        ["the fox", "the owl was kind, so she gave the ball back"],
        tiny_tokenizer.eos_token_id,
    )
    plain = encode_ended(texts, tiny_tokenizer, max_length=8, ends=[end])
    assert plain == encode_ended(texts, ending_tokenizer, max_length=8, ends=[end])
    rows, whole = plain
    assert [row.count(end) for row in rows] == [1, 1] and all(row[-1] == end for row in rows)
    assert len(rows[1]) == 8 < whole[1] and len(rows[0]) == whole[0]
    assert rows[1][:7] == tiny_tokenizer(texts[1])["input_ids"][:7]
    assert encode_ended([], tiny_tokenizer, max_length=8, ends=[end]) == ([], [])
    bert = tiny_bert_tokenizer()
    rows, _ = encode_ended(texts, bert, max_length=5, ends=[bert.sep_token_id], side="target")
    assert all(row[-1] == bert.sep_token_id and row.count(bert.sep_token_id) == 1 for row in rows)


def test_targets_are_learned_one_by_one_and_held_out_together(tiny_tokenizer, caplog) -> None:
    pairs = [
        Pair("a", ["b", "c"]),
        Pair("the fox was near the river", ["d"]),
        Pair("the owl", ["e", "f"]),
    ]
    common = {"tokenizer": tiny_tokenizer, "ends": [tiny_tokenizer.eos_token_id]}
    train = encode_sources_and_targets(
        pairs, lengths=(40, 40), name="train", prefix="x: ", **common
    )
    assert train.places == [0, 0, 1, 2, 2] and len(train.rows) == 5
    assert tiny_tokenizer.decode(train.rows[0]["input_ids"], skip_special_tokens=True) == "x: a"
    held = encode_sources_and_targets(pairs, lengths=(40, 40), name="eval", held_out=True, **common)
    assert held.places == [1, 2, 0] and held.pairs == [pairs[place] for place in held.places]
    assert [tiny_tokenizer.decode(row["labels"][:-1]) for row in held.rows] == ["d", "e", "b"]

    with caplog.at_level(logging.WARNING):
        dropped = encode_sources_and_targets(
            pairs, lengths=(6, 40), overlong="drop", name="eval", held_out=True, **common
        )
    assert (
        dropped.places == [2, 0] and "eval: 1 of 3 sources are longer than 6 tokens" in caplog.text
    )
    with pytest.raises(
        DataError,
        match="1 of 5 sources .* the first is text 3: --overlong truncate or drop, or a larger",
    ):
        encode_sources_and_targets(pairs, lengths=(6, 40), overlong="fail", name="train", **common)
    with pytest.raises(DataError, match="train: no row is left of 1"):
        encode_sources_and_targets(
            pairs[1:2], lengths=(6, 40), overlong="drop", name="train", **common
        )
    with pytest.raises(
        ConfigError, match="--overlong is 'shrink': choose one of truncate, drop, fail"
    ):
        encode_sources_and_targets(
            pairs, lengths=(6, 40), overlong="shrink", name="train", **common
        )  # type: ignore[arg-type]


def test_rows_are_read_by_columns_or_parts_of_them(caplog) -> None:
    rows = Dataset.from_list(
        [{"t": {"en": "a", "de": ["b", " ", "c"]}}, {"t": {"en": None, "de": ["d"]}}]
    )
    with caplog.at_level(logging.WARNING):
        assert read_sources_and_targets(
            rows, ("t.en", "t.de"), name="train", bad_rows=BadRows("skip")
        ) == [Pair("a", ["b", "c"])]
    assert (
        "left out 1 of 2 rows that cannot be used, the first because the source is" in caplog.text
    )
    with pytest.raises(
        DataError, match=r"train row 2: the source is empty; fix it, or leave it out with --on_bad"
    ):
        read_sources_and_targets(rows, ("t.en", "t.de"), name="train")
    with pytest.raises(
        DataError,
        match=r"train row 1: no column 't.fr', found t \(t has en, de\); name them with",
    ):
        read_sources_and_targets(rows, ("t.en", "t.fr"), name="train")
    with pytest.raises(DataError, match="train: no column 'text' for the source, found t;"):
        read_sources_and_targets(rows, ("text", "t.de"), name="train")
    with pytest.raises(DataError, match="train row 1: t is .*, not text"):
        read_sources_and_targets(rows, ("t", "t.de"), name="train")
    empty = Dataset.from_list([{"source": "a", "target": ""}])
    with pytest.raises(DataError, match="train: no row is left of 1"):
        read_sources_and_targets(
            empty, ("source", "target"), name="train", bad_rows=BadRows("skip")
        )
    assert column_value({"a.b": 1, "a": {"b": 2}}, "a.b") == 1


def test_a_batch_is_padded_on_the_right_and_shifted_as_the_model_does() -> None:
    config = T5Config(
        vocab_size=20,
        d_model=8,
        d_kv=4,
        d_ff=8,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    )
    shift = T5ForConditionalGeneration(config).prepare_decoder_input_ids_from_labels
    rows = [{"input_ids": [5, 6, 1], "labels": [7, 1]}, {"input_ids": [8, 1], "labels": [9, 10, 1]}]
    batch = collate_pairs(rows, pad_token_id=0, shift=shift)
    assert batch["input_ids"].tolist() == [[5, 6, 1], [8, 1, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[7, 1, -100], [9, 10, 1]]
    assert torch.equal(batch["decoder_input_ids"], torch.tensor([[0, 7, 1], [0, 9, 10]]))
