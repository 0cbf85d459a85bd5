"""Words and their tokens: labels stand where they should, long sentences are cut between words,
byte-level ones too.
"""

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import AutoTokenizer

from hfstack.errors import DataError
from hfstack.tasks.token_classification.data import (
    Sentence,
    check_tags,
    collate_sentences,
    encode_sentences,
    read_sentences,
    surrounding_tokens,
    tag_set,
    word_prefix,
)
from hfstack.tokens.train_tokenizer import train_tokenizer
from tests.conftest import SENTENCES

IDS = {"O": 0, "B-x": 1, "I-x": 2}


def pieces_tokenizer():
    return train_tokenizer(SENTENCES * 20, kind="wordpiece", vocab_size=60, lowercase=True)


def test_the_first_piece_carries_the_tag() -> None:
    tokenizer = pieces_tokenizer()
    sentence = Sentence(["The", "rabbit", "", "ran"], ["O", "B-x", "O", "I-x"])
    count = [len(tokenizer.tokenize(word)) for word in sentence.words]
    assert count[1] > 2 and count[2] == 0
    (window,) = encode_sentences([sentence], tokenizer, max_length=64, tag_ids=IDS)
    first, second, last = 1, 1 + count[0], 1 + count[0] + count[1]
    assert (window.labels[first], window.labels[second], window.labels[last]) == (0, 1, 2)
    assert {i for i, label in enumerate(window.labels) if label != -100} == {first, second, last}
    assert [word for word in window.words if word >= 0] == [0, 1, 3]
    assert tokenizer.decode(window.input_ids) == "[CLS] the rabbit ran [SEP]"
    (window,) = encode_sentences(
        [sentence], tokenizer, max_length=64, tag_ids=IDS, label_pieces="all"
    )
    assert window.labels[second:last] == [1, *[2] * (count[1] - 1)] and window.labels[0] == -100


def test_long_sentences_are_cut_between_words(caplog) -> None:
    caplog.set_level("INFO", logger="hfstack")
    tokenizer = pieces_tokenizer()
    words = " ".join(SENTENCES).split()
    windows = encode_sentences(
        [Sentence(words, ["O"] * len(words))] * 2, tokenizer, max_length=20, tag_ids=IDS
    )
    assert all(len(window.input_ids) <= 20 for window in windows) and {
        w.sentence for w in windows
    } == {0, 1}
    assert "rows: 2 of 2 sentences are longer than 20 tokens: split between words" in caplog.text
    for number in (0, 1):
        seen = [
            word
            for window in windows
            if window.sentence == number
            for word in window.words
            if word >= 0
        ]
        assert seen == list(range(len(words)))
    long = encode_sentences(
        [Sentence(["rabbit" * 12], ["B-x"])], tokenizer, max_length=20, tag_ids=IDS
    )
    assert len(long) == 1 and len(long[0].input_ids) == 20 and long[0].labels[1] == 1


def test_byte_level_words_keep_their_space(tiny_tokenizer, tmp_path) -> None:
    assert word_prefix(tiny_tokenizer) == " " and word_prefix(pieces_tokenizer()) == ""
    assert surrounding_tokens(tiny_tokenizer) == ([], [])
    (window,) = encode_sentences(
        [Sentence(["The", "owl"], ["O", "B-x"])], tiny_tokenizer, max_length=16, tag_ids=IDS
    )
    assert tiny_tokenizer.decode(window.input_ids) == " The owl"
    assert window.words[0] == 0 and window.words.count(1) == 1
    tiny_tokenizer.save_pretrained(tmp_path)
    assert word_prefix(AutoTokenizer.from_pretrained(tmp_path)) == " "


def test_batches_are_padded() -> None:
    rows = [
        {"input_ids": [2, 5, 3], "labels": [-100, 1, -100]},
        {"input_ids": [2, 3], "labels": [-100, -100]},
    ]
    batch = collate_sentences(rows, pad_token_id=7)
    assert batch["input_ids"].tolist() == [[2, 5, 3], [2, 3, 7]]
    assert batch["labels"].tolist() == [[-100, 1, -100], [-100, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


def test_numbers_have_the_names_that_the_column_declares() -> None:
    names = ["O", "B-x", "I-x"]
    features = Features(
        {"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=names))}
    )
    rows = Dataset.from_dict({"tokens": [["a", "b"]], "ner_tags": [[1, 2]]}, features=features)
    assert read_sentences(rows, tokens_column="tokens", name="train") == [
        Sentence(["a", "b"], ["B-x", "I-x"])
    ]


def rows_of(*tags: str) -> list[Sentence]:
    return [Sentence(["w"] * len(row.split()), row.split()) for row in tags]


def test_iob1_is_repaired_also_for_types_without_b(caplog) -> None:
    train, held_out = rows_of("I-org O I-per I-per", "I-per B-per O"), rows_of("O I-org I-org")
    names = tag_set(train, bad_tags="repair")
    assert names == ["O", "B-org", "I-org", "B-per", "I-per"]
    fixed = check_tags(train, names, bad_tags="repair", name="train")
    assert [row.tags for row in fixed] == [
        ["B-org", "O", "B-per", "I-per"],
        ["B-per", "B-per", "O"],
    ]
    (row,) = check_tags(held_out, names, bad_tags="repair", name="eval")
    assert row.tags == ["O", "B-org", "I-org"]
    assert "train: 3 entities begin with I- instead of B-, first I-org after O" in caplog.text
    assert tag_set(train, ["O", "I-org", "I-per", "B-per"], bad_tags="repair")[-1] == "B-org"
    with pytest.raises(
        DataError, match=r"^2 rows cannot be used, first: train row 1: I-org .* --bad_tags repair"
    ):
        check_tags(train, tag_set(train), bad_tags="fail", name="train")


def test_tags_of_no_whole_entity_are_never_left_out_in_silence(caplog) -> None:
    train = rows_of("B-x L-x U-x", "O I-x L-x")
    names = tag_set(train, bad_tags="repair")
    with pytest.raises(
        DataError, match=r"train row 2: I-x after O at word 2; 2 words have tags of"
    ):
        check_tags(train, names, bad_tags="fail", name="train")
    fixed = check_tags(train, names, bad_tags="repair", name="train")
    assert [row.tags for row in fixed] == [["B-x", "L-x", "U-x"], ["O", "B-x", "L-x"]]
    assert check_tags(train, names, bad_tags="keep", name="train") == train
    assert "kept, and not scored" in caplog.text


def test_entities_in_another_spelling_are_warned_of(caplog) -> None:
    tag_set(rows_of("O PER-B PER-I"))
    assert "tags such as 'PER-B' look like parts of entities" in caplog.text
