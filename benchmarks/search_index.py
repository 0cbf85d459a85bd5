"""Measure an index of passages: how long it takes to build and to ask, and what is missed.

    python benchmarks/search_index.py --model MODEL --passages passages.jsonl --queries 1000

The passages' vectors are the means of the model's token embeddings, without its layers: the index
does not know how vectors were made, and 100,000 passages are embedded in seconds. How fast the
whole model embeds is measured on the first 500 passages. Queries are passages with half of their
words, so that none is its own nearest neighbour by equality.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy
import torch
from sentence_transformers import SentenceTransformer

from hfstack.tasks.retrieval.index import PassageIndex, build_index

TOP = 10


def main() -> None:
    """Build both kinds of index, ask them, and print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--passages", type=Path, required=True)
    parser.add_argument("--queries", type=int, default=1000)
    args = parser.parse_args()

    model = SentenceTransformer(args.model, device="cpu")
    rows = [json.loads(line) for line in args.passages.open(encoding="utf-8")]
    texts = [row["passage"] for row in rows]
    began = time.process_time()
    model.encode(texts[:500], show_progress_bar=False)
    print(f"the whole model embeds {500 / (time.process_time() - began):.0f} passages a CPU second")

    # queries and what is nearest to them, by all scores
    embed = mean_of_tokens(model)
    chosen = numpy.random.default_rng(0).choice(len(texts), args.queries, replace=False)
    queries = embed([" ".join(texts[row].split()[::2]) for row in chosen])

    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for kind in ("exact", "approximate"):
            how = {"text_column": "passage", "keep": [], "identity": kind, "search": kind}
            began, place = time.process_time(), Path(folder) / kind
            build_index(place, rows, embed, model=args.model, model_hash="", **how)
            built_s = time.process_time() - began

            index = PassageIndex(place, model_hash="")
            index.find(queries[:10], TOP)
            began = time.process_time()
            found[kind] = numpy.concatenate([index.find(query[None], TOP)[1] for query in queries])
            each_ms = 1000 * (time.process_time() - began) / len(queries)
            began = time.process_time()
            index.find(queries, TOP)
            together_ms = 1000 * (time.process_time() - began) / len(queries)
            print(
                f"{kind}: built in {built_s:.1f} CPU s, asked in {each_ms:.2f} ms a query, "
                f"{together_ms:.2f} ms of {len(queries)} at once"
            )

    shared = [
        len(set(one) & set(other)) / TOP
        for one, other in zip(found["exact"], found["approximate"], strict=True)
    ]
    memory_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{len(rows)} passages: approximate search finds {numpy.mean(shared):.4f} of the {TOP}")
    print(f"largest memory of the process: {memory_mib:.0f} MiB")


def mean_of_tokens(model: SentenceTransformer):
    """Return what gives texts the mean of their token embeddings, of length 1."""
    table = model.transformers_model.get_input_embeddings().weight.detach()  # pyright: ignore
    centre = table.mean(0)

    def embed(texts: Sequence[str]) -> numpy.ndarray:
        batch = model.tokenizer(
            list(texts), padding=True, truncation=True, max_length=64, return_tensors="pt"
        )
        mask = batch["attention_mask"][..., None].float()
        found = ((table[batch["input_ids"]] - centre) * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(found, dim=-1).numpy()

    return embed


if __name__ == "__main__":
    main()
