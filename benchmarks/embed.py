"""Train an encoder on the questions of some articles, and search those of others.

    python benchmarks/embed.py --data $DATA/xquad_en.jsonl.gz --model $MINILM
    python benchmarks/embed.py --data ... --model ... --learning_rate 2e-5 --hard_negatives 2
    python benchmarks/embed.py --data ... --model ... --passages sentences

With sentences, a question asks for the one that holds its answer, among all sentences of all
paragraphs (ReQA, Ahmad et al. 2019), where one paragraph of so few is found nearly always.

Articles are split in three, so that neither a paragraph nor its neighbours are on two sides: the
recipe trains on the questions of most, keeps the epoch that is best on those of some, and the rest
is asked once, at the end. Each question is asked among all paragraphs of the data. What follows the
options below goes to the recipe.
"""

import argparse
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RECIPE = Path(__file__).parents[1] / "recipes" / "embed.py"
SETTINGS = (
    "--query_column question --passage_column context --max_length 256 --num_train_epochs 3 "
    "--per_device_train_batch_size 64 --per_device_eval_batch_size 32 --learning_rate 5e-5 "
    "--lr_scheduler_type linear --warmup_steps 0.1 --weight_decay 0.01 --bf16 true "
    "--eval_strategy epoch --save_strategy epoch --save_total_limit 1 --logging_steps 1 "
    "--load_best_model_at_end true --metric_for_best_model ndcg_at_10 --report_to none"
).split()

# where a sentence ends and another begins
_BETWEEN = re.compile(r"(?<=[.?!])[\"')\]]*\s+(?=[\"'(\[]*[A-Z0-9])")


def main() -> None:
    """Train, search and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="rows as SQuAD has them")
    parser.add_argument("--model", required=True, help="folder of an encoder")
    parser.add_argument("--passages", choices=["paragraphs", "sentences"], default="paragraphs")
    parser.add_argument("--test_share", type=float, default=0.3, help="of the articles")
    parser.add_argument("--dev_share", type=float, default=0.15, help="of the articles")
    arguments, more = parser.parse_known_args()

    # here, so that --help needs none of it
    from hfstack.data.reading.jsonl import write_jsonl
    from hfstack.data.sources import Source, iterate_rows

    rows = list(iterate_rows([Source(str(arguments.data))]))
    searched = list(dict.fromkeys(row["context"] for row in rows))
    if arguments.passages == "sentences":
        searched = [text for paragraph in searched for _, text in split_sentences(paragraph)]
        rows = [row | {"context": sentence_of_answer(row)} for row in rows]
    parts = split_by_article(rows, arguments.test_share, arguments.dev_share)
    with tempfile.TemporaryDirectory() as scratch:
        for name, part in parts.items():
            with write_jsonl(Path(scratch) / f"{name}.jsonl") as add:
                for row in part:
                    add({"question": row["question"], "context": row["context"]})

        # "train" as the recipe reads it; the rest of its options as they would be typed
        run = Path(scratch) / "run"
        data = [f"{scratch}/train.jsonl", "--eval_datasets", f"{scratch}/dev.jsonl"]
        argv = [sys.executable, str(RECIPE), "--model_name_or_path", arguments.model, "--datasets"]
        argv += [*data, "--output_dir", str(run), *SETTINGS, *more]
        subprocess.run(argv, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)

        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        counts = ", ".join(f"{len(part)} {name}" for name, part in parts.items())
        print(
            f"questions: {counts}; {(used.ru_utime + used.ru_stime) / 60:.1f} CPU minutes trained"
        )
        print_table(measure(parts, searched, arguments.model, str(run)))


def split_sentences(paragraph: str) -> list[tuple[int, str]]:
    """Return the sentences of a paragraph, each with the place where it begins."""
    ends = list(_BETWEEN.finditer(paragraph))
    begins = [0, *(end.end() for end in ends)]
    stops = [*(end.start() for end in ends), len(paragraph)]
    return [(begin, paragraph[begin:stop]) for begin, stop in zip(begins, stops, strict=True)]


def sentence_of_answer(row: dict[str, Any]) -> str:
    """Return the sentence that a row's answer begins in."""
    answer = row["answers"]["answer_start"][0]
    return [text for begin, text in split_sentences(row["context"]) if begin <= answer][-1]


def split_by_article(
    rows: list[dict[str, Any]], test_share: float, dev_share: float
) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each part, by the titles of their articles."""
    titles = sorted({row["title"] for row in rows})
    random.Random(0).shuffle(titles)
    test, dev = round(test_share * len(titles)), round(dev_share * len(titles))
    chosen = {
        "test": titles[:test],
        "dev": titles[test : test + dev],
        "train": titles[test + dev :],
    }
    return {name: [row for row in rows if row["title"] in set(chosen[name])] for name in chosen}


def measure(
    parts: dict[str, list[dict[str, Any]]], searched: list[str], before: str, after: str
) -> dict[str, float]:
    """Return what both models and BM25 find of the test questions, with intervals.

    Args:
        searched: passages that are there beside those of the questions.
    """
    from trl import ModelConfig

    from hfstack.tasks.retrieval.evaluation import RankingEvaluation
    from hfstack.tasks.retrieval.model import load_embedder
    from hfstack.tasks.retrieval.rows import TextPair

    asked = [TextPair(row["question"], row["context"]) for row in parts["test"]]
    others = [TextPair("", text) for text in searched]
    evaluation = RankingEvaluation("bi_encoder", asked, others, tokens="auto", batch_size=32)
    found = []
    for name in (after, before):
        model = load_embedder(ModelConfig(model_name_or_path=name))
        model.max_seq_length = 256
        found.append(evaluation.measure(model))
    return evaluation.report(*found)


def print_table(metrics: dict[str, float]) -> None:
    """Print a row for each side, and the gains."""
    print(f"{'':12} nDCG@10 (95 %)          MRR@10  recall@1  recall@10")
    for name in ("eval", "before", "bm25"):
        value, low, high = (metrics[f"{name}_ndcg_at_10{end}"] for end in ("", "_low", "_high"))
        others = [metrics[f"{name}_{key}"] for key in ("mrr_at_10", "recall_at_1", "recall_at_10")]
        shown = "   ".join(f"{one:.3f}" for one in others)
        print(f"{name:12} {value:.3f} ({low:.3f} to {high:.3f})  {shown}")
    for name in ("before", "bm25"):
        value, low, high = (metrics[f"eval_gain_over_{name}{end}"] for end in ("", "_low", "_high"))
        print(f"gain over {name}: {value:+.3f} ({low:+.3f} to {high:+.3f})")


if __name__ == "__main__":
    main()
