"""Packing: what is in the blocks, what is counted, the cache, several processes, and documents that
must not meet.
"""

import itertools
import json
import os
import pickle
import random
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BertTokenizer,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hfstack.data.packing.blocks import PackedBlocks, document_positions, hash_texts, pack
from hfstack.data.reading.files import _hash_once as fingerprints
from hfstack.errors import ConfigError, DataError
from tests.faults import CODES, NAMES, Faults

STORIES = [
    "Once upon a time a small fox found a red ball near the river.",
    "The owl was kind, so she gave the ball back. 猫头鹰很高兴。",
    "A brave rabbit ran up the hill and saw the whole forest — all of it.\n\nThen home.",
    "They were happy.",
]


def row_of_tokens(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The whole row that the blocks are cut from, made the slow way."""
    return [
        token
        for text in texts
        for token in [
            *tokenizer(text, add_special_tokens=False)["input_ids"],
            tokenizer.eos_token_id,
        ]
    ]


def test_blocks_are_the_documents_with_an_eos_after_each(tiny_tokenizer, tmp_path):
    blocks = pack(STORIES, tiny_tokenizer, block_size=16, cache_dir=tmp_path, data_hash="a")
    row = row_of_tokens(STORIES, tiny_tokenizer)
    assert len(blocks) == len(row) // 16
    assert (
        torch.cat([blocks[index]["input_ids"] for index in range(len(blocks))]).tolist()
        == row[: len(blocks) * 16]
    )
    assert set(blocks[0]) == {"input_ids", "labels"}
    assert blocks[0]["input_ids"].dtype == torch.int64
    assert torch.equal(blocks[0]["labels"], blocks[0]["input_ids"])
    assert blocks.counts.dropped_token_count == len(row) % 16
    assert blocks.counts.engine == "tiktoken"
    assert blocks.counts.dtype == "uint16"


def test_counts_are_of_the_text_whose_tokens_are_in_the_blocks(tiny_tokenizer, tmp_path):
    for block_size in (2, 5, 16, 33):
        blocks = pack(
            STORIES, tiny_tokenizer, block_size=block_size, cache_dir=tmp_path, data_hash="a"
        )
        kept = row_of_tokens(STORIES, tiny_tokenizer)[: blocks.token_count]
        assert blocks.token_count == len(blocks) * block_size
        text = tiny_tokenizer.decode(
            kept, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        # A character that the edge cuts decodes to one replacement character, and is counted whole.
        whole = text.rstrip("�")
        assert "".join(STORIES).startswith(whole)
        cut = "".join(STORIES)[len(whole)] if text != whole else ""
        assert blocks.byte_count == len((whole + cut).encode())
        ends = kept.count(tiny_tokenizer.eos_token_id)
        assert blocks.document_count == ends + (kept[-1] != tiny_tokenizer.eos_token_id)


def test_last_block_is_padded_and_its_padding_is_not_learnt(tiny_tokenizer, tmp_path):
    row = row_of_tokens(STORIES, tiny_tokenizer)
    size = 50
    assert len(row) % size
    blocks = pack(
        STORIES, tiny_tokenizer, block_size=size, cache_dir=tmp_path, data_hash="a", drop_last=False
    )
    rest = len(row) % size
    assert blocks.token_count == len(row)
    assert blocks.byte_count == sum(len(story.encode()) for story in STORIES)
    assert blocks.document_count == 4
    for block in (blocks[-1], blocks[len(blocks) - 1]):
        assert block["input_ids"].tolist() == row[-rest:] + [tiny_tokenizer.pad_token_id] * (
            size - rest
        )
        assert block["labels"].tolist() == row[-rest:] + [-100] * (size - rest)
    assert (blocks[0]["labels"] != -100).all()


def test_masked_tokens_are_read_but_not_learnt(tiny_tokenizer, tmp_path):
    eos = tiny_tokenizer.eos_token_id
    blocks = pack(
        STORIES,
        tiny_tokenizer,
        block_size=64,
        cache_dir=tmp_path,
        data_hash="a",
        masked_token_ids=[eos],
    )
    block = blocks[0]
    assert (block["input_ids"] == eos).any()
    assert torch.equal(block["labels"] == -100, block["input_ids"] == eos)


def test_batches_are_the_blocks_by_every_way_in(tiny_tokenizer, tmp_path):
    blocks = pack(
        STORIES * 5,
        tiny_tokenizer,
        block_size=8,
        cache_dir=tmp_path,
        data_hash="a",
        isolate_documents=True,
    )
    indices = [3, 0, 7, 3]
    one_by_one = PackedBlocks.collate([blocks[index] for index in indices])
    at_once = PackedBlocks.collate(blocks.__getitems__(indices))
    loader = torch.utils.data.DataLoader(
        blocks, sampler=indices, batch_size=4, collate_fn=PackedBlocks.collate
    )
    for batch in (at_once, blocks.batch(indices), next(iter(loader))):
        assert set(batch) == {"input_ids", "labels", "position_ids"}  # and no attention mask
        for name, column in batch.items():
            assert torch.equal(column, one_by_one[name])
    with pytest.raises(IndexError):
        blocks[len(blocks)]


def test_positions_restart_after_each_eos():
    rows = np.array([[5, 6, 0, 7, 8, 9], [0, 0, 5, 0, 6, 7], [1, 2, 3, 4, 5, 0]])
    expected = [[0, 1, 2, 0, 1, 2], [0, 0, 0, 1, 0, 1], [0, 1, 2, 3, 4, 5]]
    assert document_positions(rows, eos_id=0).tolist() == expected


def test_a_long_document_goes_on_in_the_next_block_at_position_0(tiny_tokenizer, tmp_path):
    long = " ".join(STORIES)
    blocks = pack(
        [long],
        tiny_tokenizer,
        block_size=16,
        cache_dir=tmp_path,
        data_hash="a",
        isolate_documents=True,
    )
    assert len(blocks) > 2
    assert blocks.document_count == 1
    for index in range(len(blocks)):
        assert blocks[index]["position_ids"].tolist() == list(range(16))


def test_empty_documents_are_left_out_and_counted(tiny_tokenizer, tmp_path):
    texts = ["", STORIES[0], "", "", STORIES[1], ""]
    blocks = pack(
        texts, tiny_tokenizer, block_size=8, cache_dir=tmp_path, data_hash="a", drop_last=False
    )
    row = row_of_tokens([STORIES[0], STORIES[1]], tiny_tokenizer)
    assert blocks.token_count == len(row)
    assert (blocks.document_count, blocks.counts.empty_document_count) == (2, 4)


def test_an_eos_written_in_the_text_ends_the_document_once(tiny_tokenizer, tmp_path):
    texts = ["one<|endoftext|>two", "three<|endoftext|>", "four"]
    blocks = pack(
        texts, tiny_tokenizer, block_size=2, cache_dir=tmp_path, data_hash="a", drop_last=False
    )
    row = torch.cat([blocks[index]["input_ids"] for index in range(len(blocks))])[
        : blocks.token_count
    ]
    assert (
        tiny_tokenizer.decode(row)
        == "one<|endoftext|>two<|endoftext|>three<|endoftext|>four<|endoftext|>"
    )


def test_many_batches_give_the_same_as_one(tiny_tokenizer, tmp_path, monkeypatch):
    texts = [*STORIES, ""] * 20
    whole = pack(texts, tiny_tokenizer, block_size=32, cache_dir=tmp_path / "whole", data_hash="a")
    monkeypatch.setattr("hfstack.data.packing.blocks._BATCH_CHARACTERS", 70)
    pieces = pack(
        iter(texts), tiny_tokenizer, block_size=32, cache_dir=tmp_path / "pieces", data_hash="a"
    )
    assert whole.counts == pieces.counts
    assert (whole.folder / "tokens.bin").read_bytes() == (pieces.folder / "tokens.bin").read_bytes()


def test_a_second_run_opens_the_first_ones_blocks(tiny_tokenizer, tmp_path):
    def never() -> Iterator[str]:
        raise AssertionError("the texts were read again")
        yield

    first = pack(STORIES, tiny_tokenizer, block_size=16, cache_dir=tmp_path, data_hash="a")
    again = pack(never(), tiny_tokenizer, block_size=16, cache_dir=tmp_path, data_hash="a")
    assert again.folder == first.folder
    isolated = pack(
        never(),
        tiny_tokenizer,
        block_size=16,
        cache_dir=tmp_path,
        data_hash="a",
        isolate_documents=True,
    )
    assert "position_ids" in isolated[0]
    assert [path.name for path in tmp_path.glob("*.partial")] == []


def test_other_data_settings_or_tokenizer_are_packed_anew(tiny_tokenizer, tmp_path):
    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tiny_tokenizer.backend_tokenizer.to_str()),
        eos_token="<|pad|>",
        pad_token="<|pad|>",
    )
    folders = {
        pack(
            STORIES,
            tokenizer,
            block_size=size,
            cache_dir=tmp_path,
            data_hash=data_hash,
            drop_last=drop_last,
        ).folder
        for tokenizer, size, data_hash, drop_last in [
            (tiny_tokenizer, 16, "a", True),
            (tiny_tokenizer, 16, "b", True),
            (tiny_tokenizer, 8, "a", True),
            (tiny_tokenizer, 16, "a", False),
            (other, 16, "a", True),
        ]
    }
    assert len(folders) == 5
    # What an earlier call left in the tokenizer changes neither ids nor cache.
    tiny_tokenizer(STORIES, truncation=True, max_length=4, padding="max_length")
    assert (
        pack([], tiny_tokenizer, block_size=16, cache_dir=tmp_path, data_hash="a").folder in folders
    )


def test_a_run_killed_while_packing_leaves_nothing_that_is_taken_for_whole(
    tiny_tokenizer, tmp_path
):
    def interrupted() -> Iterator[str]:
        yield from STORIES
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(interrupted(), tiny_tokenizer, block_size=16, cache_dir=tmp_path, data_hash="a")
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
    # kill -9 leaves the partial folder itself: the next run sweeps it away.
    reference = pack(
        STORIES, tiny_tokenizer, block_size=16, cache_dir=tmp_path / "reference", data_hash="a"
    )
    partial = tmp_path / f".{reference.folder.name}.partial"
    partial.mkdir()
    (partial / "tokens.bin").write_bytes(b"torn")
    blocks = pack(STORIES, tiny_tokenizer, block_size=16, cache_dir=tmp_path, data_hash="a")
    assert blocks.counts == reference.counts
    assert not partial.exists()


def test_of_two_at_once_one_packs_and_the_other_waits(tiny_tokenizer, tmp_path):
    reads = []

    def slow() -> Iterator[str]:
        reads.append(1)
        time.sleep(0.3)
        yield from STORIES

    # Each call opens its own lock file, so the lock works between threads as it does between
    # processes.
    with ThreadPoolExecutor(2) as pool:
        calls = [
            pool.submit(
                pack, slow(), tiny_tokenizer, block_size=16, cache_dir=tmp_path, data_hash="a"
            )
            for _ in range(2)
        ]
        first, second = (call.result(timeout=30) for call in calls)
    assert reads == [1]
    assert first.counts == second.counts
    assert torch.equal(first[0]["input_ids"], second[0]["input_ids"])


def test_pickled_blocks_carry_the_path_and_not_the_data(tiny_tokenizer, tmp_path):
    texts = STORIES * 300
    blocks = pack(
        texts,
        tiny_tokenizer,
        block_size=16,
        cache_dir=tmp_path,
        data_hash="a",
        isolate_documents=True,
    )
    sent = pickle.dumps(blocks)
    assert len(sent) < 2000 < (blocks.folder / "tokens.bin").stat().st_size
    opened = pickle.loads(sent)  # noqa: S301
    assert torch.equal(opened[5]["position_ids"], blocks[5]["position_ids"])


def test_damaged_blocks_are_packed_again(tiny_tokenizer, tmp_path):
    blocks = pack(STORIES, tiny_tokenizer, block_size=16, cache_dir=tmp_path, data_hash="a")
    content = (blocks.folder / "tokens.bin").read_bytes()
    for damaged in (b"12", content[:10] + bytes([content[10] ^ 1]) + content[11:]):
        (blocks.folder / "tokens.bin").write_bytes(damaged)
        assert (
            pack(STORIES, tiny_tokenizer, block_size=16, cache_dir=tmp_path, data_hash="a").counts
            == blocks.counts
        )
        assert (blocks.folder / "tokens.bin").read_bytes() == content


def test_damaged_files_are_refused(tiny_tokenizer, tmp_path):
    blocks = pack(STORIES, tiny_tokenizer, block_size=16, cache_dir=tmp_path, data_hash="a")
    (blocks.folder / "tokens.bin").write_bytes(b"12")
    with pytest.raises(DataError, match=r"damaged.*delete that folder"):
        PackedBlocks(blocks.folder)
    (blocks.folder / "counts.json").write_text(json.dumps({"block_size": 16}))
    with pytest.raises(DataError, match="damaged"):
        PackedBlocks(blocks.folder)


@pytest.mark.parametrize("code", CODES, ids=NAMES)
@pytest.mark.parametrize(
    ("name", "at"),
    [
        *(("tokens.blake2b", at) for at in ("open", "read")),
        *(("tokens.bin", at) for at in ("open", "read", "stat")),
        ("counts.json", "open"),
        ("counts.json", "read"),
    ],
)
def test_blocks_that_could_not_be_read_are_not_damaged(tiny_tokenizer, tmp_path, code, name, at):
    def packed(texts):
        # in a new process nothing is known of the file yet
        fingerprints.cache_clear()
        return pack(texts, tiny_tokenizer, block_size=16, cache_dir=tmp_path, data_hash="a")

    blocks = packed(STORIES)
    before = {path: path.read_bytes() for path in blocks.folder.iterdir()}
    with Faults() as faults:
        faults.plant(code, name, at=at)
        with pytest.raises(DataError, match="could not be read in 4 tries") as refusal:
            packed(["another text"])
    assert os.strerror(code) in str(refusal.value) and "delete" not in str(refusal.value)
    assert {path: path.read_bytes() for path in blocks.folder.iterdir()} == before

    with Faults() as faults:
        faults.plant(code, name, at=at, times=2)
        assert packed(["another text"]).counts == blocks.counts


def test_damaged_blocks_stay_until_they_are_packed_again(tiny_tokenizer, tmp_path):
    def packed(texts):
        return pack(texts, tiny_tokenizer, block_size=16, cache_dir=tmp_path, data_hash="a")

    folder = packed(STORIES).folder
    (folder / "tokens.bin").write_bytes(b"12")
    with pytest.raises(DataError, match="not text"):
        packed([None])
    assert (folder / "tokens.bin").read_bytes() == b"12" and (folder / "counts.json").is_file()
    assert len(packed(STORIES)) > 1
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [folder.name]


def test_memory_does_not_grow_with_the_corpus(tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("hfstack.data.packing.blocks._BATCH_CHARACTERS", 20_000)

    def peak_bytes(document_count: int) -> int:
        texts = (f"{index} {STORIES[index % 4]}" for index in range(document_count))
        tracemalloc.start()
        pack(
            texts, tiny_tokenizer, block_size=64, cache_dir=tmp_path, data_hash=str(document_count)
        )
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak_bytes(500)
    assert peak_bytes(8000) < 1.2 * peak_bytes(1000)


def test_large_vocabularies_take_four_bytes_a_token(tmp_path):
    words = {f"w{index}": index for index in range(70_000)} | {"</s>": 70_000}
    core = Tokenizer(models.WordLevel(words, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")
    blocks = pack(["w69999 w5 w66000"], tokenizer, block_size=4, cache_dir=tmp_path, data_hash="a")
    assert blocks[0]["input_ids"].tolist() == [69999, 5, 66000, 70000]
    assert (blocks.counts.dtype, blocks.counts.engine) == ("uint32", "tokenizers")


@pytest.mark.parametrize(
    ("texts", "problem"),
    [
        ([], "nothing to pack: 0 documents"),
        (["", ""], "nothing to pack: 2 documents"),
        (["short"], "fewer than one block of block_size 64"),
        (["text", None], "document 1 is NoneType, not text"),
        (["fine", "half \ud83d of a pair"], "half a surrogate pair at character 5"),
    ],
)
def test_bad_text_is_refused_in_one_line(tiny_tokenizer, tmp_path, texts, problem):
    with pytest.raises(DataError, match=problem) as caught:
        pack(texts, tiny_tokenizer, block_size=64, cache_dir=tmp_path, data_hash="a")
    assert "\n" not in str(caught.value)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_text_outside_the_vocabulary_is_refused(tmp_path):
    letters = {letter: index for index, letter in enumerate("abcdefgh ")} | {"</s>": 9}
    # its unk token is not in the vocabulary
    wordless = Tokenizer(models.WordLevel(letters, unk_token="<unk>"))
    # BPE without an unk token leaves unknown characters out
    silent = Tokenizer(models.BPE(letters, []))
    for core, texts in [(wordless, ["abc"]), (silent, ["abz"]), (silent, ["zzz"])]:
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")
        with pytest.raises(DataError, match=r"no token for 'z|vocabulary lacks a token"):
            pack(texts, tokenizer, block_size=2, cache_dir=tmp_path, data_hash="a")


def test_a_tokenizer_without_an_eos_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"has no eos token.*set tokenizer\.eos_token"):
        pack(STORIES, BertTokenizer(), block_size=8, cache_dir=tmp_path, data_hash="a")


def test_a_useless_block_size_or_folder_is_refused(tiny_tokenizer, tmp_path):
    with pytest.raises(ConfigError, match="block_size is 1"):
        pack(STORIES, tiny_tokenizer, block_size=1, cache_dir=tmp_path, data_hash="a")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot write packed data to .*file"):
        pack(
            STORIES,
            tiny_tokenizer,
            block_size=8,
            cache_dir=tmp_path / "file" / "cache",
            data_hash="a",
        )


def test_hash_of_texts_knows_content_order_and_borders():
    hashes = {
        hash_texts(texts) for texts in (["a", "b"], ["b", "a"], ["ab"], ["a", "b", ""], ["a"])
    }
    assert len(hashes) == 5
    assert hash_texts(iter(["a", "b"])) == hash_texts(["a", "b"])


# --- documents of one block must not see each other -----------------------------------------------

SIZES = {"vocab_size": 300, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1}
CONFIGS = {
    "llama": LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        **SIZES,
    ),
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=128, **SIZES),
}


@pytest.fixture(
    params=[(name, attention) for name in CONFIGS for attention in ("sdpa", "eager")], ids="-".join
)
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    name, attention = request.param
    set_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation=attention).eval()
    for parameter in model.parameters():
        parameter.data.mul_(5)  # far from the near-uniform attention of a fresh model
    return model


def _packed(
    texts: list[str], tokenizer: PreTrainedTokenizerFast, folder: Path
) -> dict[str, torch.Tensor]:
    """Two rows of 64 tokens; the first holds several documents."""
    blocks = pack(
        texts,
        tokenizer,
        block_size=64,
        cache_dir=folder,
        data_hash=hash_texts(texts),
        isolate_documents=True,
    )
    return blocks.batch([0, 1])


def _with_other_words(text: str, tokenizer: PreTrainedTokenizerFast) -> str:
    """Another text of as many tokens."""
    count = len(tokenizer(text)["input_ids"])
    return "".join(random.Random(0).choices("bcdfghjkmpqvwxz", k=count)) if count else ""


@torch.no_grad()
def test_no_token_sees_another_document(model, tiny_tokenizer, tmp_path):
    texts = STORIES * 3
    batch = _packed(texts, tiny_tokenizer, tmp_path)
    changed = [_with_other_words(texts[0], tiny_tokenizer), *texts[1:]]
    other = _packed(changed, tiny_tokenizer, tmp_path)
    # column at which the second document begins
    first = int((batch["position_ids"][0] == 0).nonzero()[1])
    assert torch.equal(batch["input_ids"][:, first:], other["input_ids"][:, first:])
    assert not torch.equal(batch["input_ids"][0, : first - 1], other["input_ids"][0, : first - 1])
    inputs = ("input_ids", "position_ids")
    logits, other_logits = (
        model(**{name: each[name] for name in inputs}, use_cache=False).logits
        for each in (batch, other)
    )
    assert torch.equal(logits[0, first:], other_logits[0, first:])
    assert not torch.allclose(logits[0, : first - 1], other_logits[0, : first - 1], atol=1e-2)

    # The packed document has the logits that it has alone.
    starts = [*(batch["position_ids"][0] == 0).nonzero().flatten().tolist(), 64]
    assert len(starts) >= 3
    for start, end in itertools.pairwise(starts):
        alone = model(input_ids=batch["input_ids"][:1, start:end]).logits
        torch.testing.assert_close(logits[:1, start:end], alone, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("trap", ["mask of ones", "cache"])
def test_the_traps_a_mask_of_ones_or_a_cache_lets_documents_see_each_other(
    model, tiny_tokenizer, tmp_path, trap
):
    batch = _packed(STORIES * 3, tiny_tokenizer, tmp_path)
    second = int((batch["position_ids"][0] == 0).nonzero()[1])
    inputs = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"]}
    isolated = model(**inputs, use_cache=False).logits
    if trap == "cache":
        leaking = model(**inputs, use_cache=True).logits
    else:
        leaking = model(
            **inputs, use_cache=False, attention_mask=torch.ones_like(batch["input_ids"])
        ).logits
    assert (isolated[0, second:] - leaking[0, second:]).abs().max() > 1e-2
    torch.testing.assert_close(isolated[0, :second], leaking[0, :second], atol=1e-4, rtol=1e-4)


def test_trainer_keeps_both_traps_shut(tiny_llama, tiny_tokenizer, tmp_path):
    blocks = pack(
        STORIES * 4,
        tiny_tokenizer,
        block_size=32,
        cache_dir=tmp_path,
        data_hash="a",
        isolate_documents=True,
    )
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    assert model.config.use_cache
    arguments = TrainingArguments(
        tmp_path / "run", use_cpu=True, per_device_train_batch_size=4, report_to="none"
    )
    trainer = Trainer(model, arguments, train_dataset=blocks, data_collator=PackedBlocks.collate)
    batch = next(iter(trainer.get_train_dataloader()))
    assert set(batch) == {"input_ids", "labels", "position_ids"}
    assert batch["input_ids"].shape == (4, 32)
    assert not model.config.use_cache


def test_documents_begin_with_bos_where_the_tokenizer_does_so(
    tiny_tokenizer, tmp_path: Path
) -> None:
    import copy

    from tokenizers.processors import TemplateProcessing

    llama_like = copy.deepcopy(tiny_tokenizer)
    llama_like.add_special_tokens({"bos_token": "<s>"})
    bos, eos = llama_like.bos_token_id, llama_like.eos_token_id
    template = TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", bos)])
    llama_like.backend_tokenizer.post_processor = template
    texts = ["the fox", "<s>the owl", "a hill"]
    blocks = pack(
        texts, llama_like, block_size=4, cache_dir=tmp_path, data_hash="bos", drop_last=False
    )
    row = torch.cat([blocks[i]["input_ids"] for i in range(len(blocks))]).tolist()[
        : blocks.token_count
    ]
    documents = [
        llama_like(text.removeprefix("<s>"), add_special_tokens=False)["input_ids"]
        for text in texts
    ]
    # one bos each, never two
    assert row == [token for ids in documents for token in (bos, *ids, eos)]
    assert blocks.byte_count == sum(len(text) for text in texts)
    dropped = pack(texts, llama_like, block_size=len(row) - 2, cache_dir=tmp_path, data_hash="bos")
    assert dropped.byte_count == sum(len(text) for text in texts[:2]) + len(
        llama_like.decode(documents[2][:-1])
    )


def test_a_bos_that_the_tokenizer_does_not_write_is_not_written(
    tiny_tokenizer, tmp_path: Path
) -> None:
    import copy

    gpt2_like = copy.deepcopy(tiny_tokenizer)
    gpt2_like.bos_token = gpt2_like.eos_token
    blocks = pack(
        ["the fox"], gpt2_like, block_size=2, cache_dir=tmp_path, data_hash="x", drop_last=False
    )
    assert blocks[0]["input_ids"][0] == gpt2_like("the")["input_ids"][0]
