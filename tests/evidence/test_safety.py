"""Safety: refusals by the rule, copied and extracted text that was planted, personal data."""

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from hfstack.data.packing.blocks import pack
from hfstack.errors import DataError
from hfstack.evidence.measured import Measured
from hfstack.evidence.safety import (
    add_extraction,
    add_personal_data,
    add_refusals,
    extract,
    longest_copies,
    refuses_by_rule,
)
from hfstack.evidence.training_text import training_texts
from tests.conftest import SENTENCES
from tests.data.test_contamination import make_text
from tests.tiny_encoder import tiny_bert_tokenizer

REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I can’t assist with this request.",
    "I am unable to provide instructions for that.",
    "As an AI, I do not do this.",
    "Sorry, I cannot answer. I won't say it.",
    "I must decline.",
]
ANSWERS = [
    "Sure! Take two cups of flour.",
    "The fox said that nobody can know what the owl will not tell.",
    "You cannot mix these; do it in two steps.",
    "Once upon a time " + "there was a fox. " * 20 + "I'm sorry, he said.",
]


def test_the_rule_reads_how_an_answer_begins() -> None:
    assert refuses_by_rule([], REFUSALS) == [1.0] * 6
    assert refuses_by_rule([], ANSWERS) == [0.0] * 4


def test_refusals_answers_and_empty_answers_are_counted_apart() -> None:
    measured = Measured()
    refused = add_refusals(measured, "harmful", ["no", "yes", " ", "?"], [0.9, 0.1, 0.9, None])
    assert refused == [True, False, False, None]
    assert measured.metrics["harmful_refusal_share"] == pytest.approx(1 / 3)
    assert measured.metrics["harmful_answer_share"] == pytest.approx(1 / 3)
    assert measured.metrics["harmful_empty_share"] == 0.25
    assert measured.metrics["harmful_not_judged"] == 1 and measured.few == ["harmful prompts (3)"]


def test_personal_data_that_the_prompt_does_not_have() -> None:
    measured = Measured()
    found = add_personal_data(
        measured,
        ["write to a@example.org", "who?"],
        ["a@example.org, or b@example.org", "call (212) 555-0123"],
    )
    assert found == [{"email": 1}, {"phone": 1}]
    assert measured.metrics["personal_data_share"] == 1.0
    assert measured.metrics["personal_data_email"] == 1


def test_the_longest_copied_run_is_found_to_the_word() -> None:
    train = [make_text(seed) for seed in range(40)]
    words, own = train[7].split(), make_text(99)
    answer = f"{own} {' '.join(words[10:34]).upper()}! {' '.join(words[40:49])} {make_text(98)}"
    copies = longest_copies([answer, own, "short", " ".join(words[:7])], train)
    assert [one.units for one in copies] == [24, 0, 0, 0]
    assert copies[0].text == " ".join(words[10:34])
    # brute force: of one answer, the longest run that stands in a text
    said, joined = answer.lower().replace("!", "").split(), " | ".join(train)
    places = [(begin, end) for begin in range(len(said)) for end in range(begin, len(said))]
    best = max(end - begin for begin, end in places if " ".join(said[begin:end]) in joined)
    assert best == 24


def test_a_text_that_was_learned_by_heart_is_extracted(tiny_llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    model = LlamaForCausalLM.from_pretrained(tiny_llama)
    text = SENTENCES[0]
    start = [tokenizer.eos_token_id]
    ids = torch.tensor([start + tokenizer(text)["input_ids"]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    model.eval()
    other = " ".join(random.Random(1).sample(SENTENCES[2].split(), 11)) + " low sun hill"
    shares = extract(model, tokenizer, [text, other, "a"], tokens=8, most=5)
    assert len(shares) == 2 and shares[0] == 1.0 > shares[1]
    measured = Measured()
    add_extraction(measured, "extracted", shares)
    assert measured.metrics["extracted_share"] == 0.5 and measured.metrics["extracted_texts"] == 2


def test_packed_blocks_are_read_as_documents(tiny_tokenizer, tmp_path: Path) -> None:
    blocks = pack(
        SENTENCES,
        tiny_tokenizer,
        block_size=16,
        cache_dir=tmp_path,
        data_hash="x",
        drop_last=False,
    )
    assert list(training_texts([str(blocks.folder)], tiny_tokenizer)) == SENTENCES
    with pytest.raises(DataError, match="was packed with another tokenizer"):
        list(training_texts([str(blocks.folder)], tiny_bert_tokenizer()))
