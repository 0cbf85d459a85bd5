"""Compare `pack` with the usual `datasets.map` and `group_texts`: time and token ids.

    python benchmarks/packing.py                                        # text made here
    python benchmarks/packing.py --datasets stories.jsonl --vocab_size 4096

Both sides run on one thread, in turns, with every cache removed before each turn. Time is CPU
seconds of this process and its children. Both begin at a list of texts in memory and end with
blocks that can be indexed; the tokenizer is the same, and the token ids are compared.
"""

import argparse
import os
import random
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

os.environ |= {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
os.environ |= {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "1"}

import numpy as np
from datasets import Dataset
from result_file import markdown_table, save
from transformers import PreTrainedTokenizerBase

from hfstack.data.packing.blocks import PackedBlocks, hash_texts, pack
from hfstack.data.sources import Source, iterate_rows
from hfstack.tokens.train_tokenizer import train_tokenizer


def made_up_text(story_count: int) -> list[str]:
    """Return stories with a vocabulary of a few thousand words: no file is needed."""
    generator = random.Random(0)
    syllables = [
        first + second
        for first in "bdfgklmnprstvw"
        for second in ("a", "e", "i", "o", "u", "an", "el", "or")
    ]

    words = ["".join(generator.choices(syllables, k=generator.randint(1, 3))) for _ in range(4000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]  # Zipf's law

    def story() -> str:
        drawn = generator.choices(words, weights, k=generator.randint(60, 240))
        sentences = [
            " ".join(drawn[start : start + 9]).capitalize() + "."
            for start in range(0, len(drawn), 9)
        ]
        return " ".join(sentences)

    return [story() for _ in range(story_count)]


def stock(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, block_size: int, folder: Path
) -> Dataset:
    """Do what transformers' run_clm.py does, with the eos that it leaves to the tokenizer."""
    eos = tokenizer.eos_token_id

    def tokenize(rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {
            "input_ids": [
                [*ids, eos] for ids in tokenizer(rows["text"], verbose=False)["input_ids"]
            ]
        }  # type: ignore[list-item]

    def group(rows: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        row = list(chain.from_iterable(rows["input_ids"]))
        blocks = [
            row[start : start + block_size]
            for start in range(0, len(row) // block_size * block_size, block_size)
        ]
        return {"input_ids": blocks, "labels": [block.copy() for block in blocks]}

    rows = Dataset.from_dict({"text": texts})
    tokenized = rows.map(
        tokenize,
        batched=True,
        remove_columns=["text"],
        cache_file_name=str(folder / "tokens.arrow"),
    )

    return tokenized.map(group, batched=True, cache_file_name=str(folder / "blocks.arrow"))


def ours(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, block_size: int, folder: Path
) -> PackedBlocks:
    """Fingerprint the text and pack it, as the pretraining recipe does."""
    return pack(
        texts, tokenizer, block_size=block_size, cache_dir=folder, data_hash=hash_texts(texts)
    )


def cpu_seconds() -> float:
    """Return user and system time of this process and of its finished children."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def same_ids(
    packed: PackedBlocks, grouped: Dataset, texts: list[str], tokenizer: PreTrainedTokenizerBase
) -> bool:
    """Return whether both sides have the ids of the texts.

    The stock side drops the end of each batch of 1000 documents, so its first blocks are compared.
    """
    row = np.concatenate([packed[index]["input_ids"].numpy() for index in range(len(packed))])
    encoded = tokenizer(texts, verbose=False)["input_ids"]
    expected = list(chain.from_iterable([*ids, tokenizer.eos_token_id] for ids in encoded))  # type: ignore[misc]
    first = min(len(grouped), len(packed), 100)
    started_equal = all(
        grouped[index]["input_ids"] == packed[index]["input_ids"].tolist() for index in range(first)
    )
    return row.tolist() == expected[: len(row)] and started_equal


def main() -> None:
    """Run both sides in turns and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--datasets", nargs="*", help="files with a column `text`; made-up text by default"
    )
    parser.add_argument(
        "--vocab_size", type=int, default=4096, help="of the byte-level BPE trained on the text"
    )
    parser.add_argument("--block_size", type=int, default=256, help="tokens a block")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side")
    args = parser.parse_args()

    texts = made_up_text(4000)
    if args.datasets:
        rows = iterate_rows([Source(path) for path in args.datasets])
        texts = [row["text"] for row in rows]
    tokenizer = train_tokenizer(texts, kind="bpe", vocab_size=args.vocab_size)
    sides: dict[str, Callable[..., PackedBlocks | Dataset]] = {
        "datasets.map + group_texts": stock,
        "hfstack pack": ours,
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    results: dict[str, PackedBlocks | Dataset] = {}

    # In turns, so that a busy machine slows both alike.
    with tempfile.TemporaryDirectory() as scratch:
        for turn in range(args.rounds + 1):
            for name, side in sides.items():
                folder = Path(scratch) / f"{side.__name__}-{turn}"
                folder.mkdir()
                started = cpu_seconds()
                results[name] = side(texts, tokenizer, args.block_size, folder)
                if turn:  # the first turn warms up imports and the file cache
                    seconds[name].append(cpu_seconds() - started)
                if turn < args.rounds:
                    shutil.rmtree(folder)

        packed, grouped = results["hfstack pack"], results["datasets.map + group_texts"]
        assert isinstance(packed, PackedBlocks)
        assert isinstance(grouped, Dataset)
        equal = same_ids(packed, grouped, texts, tokenizer)

        figures = {
            "documents": len(texts),
            "megabytes": sum(len(text.encode()) for text in texts) / 1e6,
            "tokens": packed.token_count,
            "vocabulary": len(tokenizer),
            "engine": packed.counts.engine,
            "equal": equal,
            "cpu_s": seconds,
        }
        print(write_table(figures))
        save("packing", vars(args), figures)

    if not equal:
        sys.exit("the two sides disagree about the token ids")


def write_table(figures: dict[str, Any]) -> str:
    """Return what was packed, and a row for each side; ratios are to the first."""
    sides = figures["cpu_s"]
    base = statistics.median(next(iter(sides.values())))
    rows = []
    for name, values in sides.items():
        middle = statistics.median(values)
        rate = figures["megabytes"] / middle
        span = f"{middle:.3f} ({min(values):.3f} to {max(values):.3f})"
        rows.append([name, span, f"{rate:.1f}", f"{base / middle:.1f}x"])

    table = markdown_table(["side", "CPU s (from, to)", "MB per CPU s", "of the first"], rows)
    equal = "ids equal" if figures["equal"] else "IDS DIFFER"
    return (
        f"{table}\n{figures['documents']:,} documents, {figures['megabytes']:.2f} MB, "
        f"{figures['tokens']:,} tokens, vocabulary {figures['vocabulary']:,}, engine "
        f"{figures['engine']}, {equal}.\n"
    )


if __name__ == "__main__":
    main()
