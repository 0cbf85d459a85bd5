"""Generate the demo corpus: short English stories with planted noise.

    hfstack run demo_corpus --output_dir runs/demo_corpus
    python recipes/demo_corpus.py --stories 12000 --output_dir runs/demo_corpus     # the same

reads   nothing: the stories come from a generator, so no network is needed
writes  raw.jsonl, planted.jsonl (the truth about the noise), prompts.txt, on request
        instructions.jsonl, chat.jsonl, sentiment.jsonl and functions.jsonl, and run.json, in
        --output_dir
"""

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from hfstack.config import command_line
from hfstack.data.reading.jsonl import write_jsonl
from hfstack.demo.functions import FunctionArgs, functions
from hfstack.demo.instructions import DemoTask, as_messages, instructions, openings, sentiment_rows
from hfstack.demo.noise import DROPPED, FAULTS, noisy_corpus
from hfstack.demo.variety import ngram_bits_per_byte, variety
from hfstack.errors import ConfigError
from hfstack.runs.run import Run

OPENINGS = 20  # lines of prompts.txt, of stories that are in none of the other files
MEASURED = 10_000  # so many undamaged stories are enough to measure variety


@dataclass
class DemoArgs(FunctionArgs):
    output_dir: str = "runs/demo_corpus"
    """Where raw.jsonl, the other files and run.json go."""
    stories: int = 12000
    """Rows of raw.jsonl, noisy ones included; about 600 bytes each."""
    noise_share: float = 0.15
    """Share of the rows that are duplicates or damaged on purpose, in [0, 1)."""
    seed: int = 0
    """Row n of a seed is the same however many rows are written."""
    instructions: int = 0
    """Rows of instructions.jsonl (prompt, completion) and chat.jsonl (the same as messages); 0
    writes none.
    """
    task: DemoTask = "mixed"
    """What instructions ask for: mixed (stories, and questions about stories) or beginning (how a
    story begins).
    """
    careless_share: float = 0.0
    """Share of the answers to `beginning` tasks without capitals, torn off or too short, in [0, 1).
    """
    sentiment: int = 0
    """Rows of sentiment.jsonl (text, label): 1 for a happy ending, 0 for a sad one; 0 writes none.
    """

    def __post_init__(self) -> None:
        if not 0 <= self.noise_share < 1:
            raise ConfigError(f"noise_share must be in [0, 1), got {self.noise_share}")
        if self.task not in get_args(DemoTask):
            raise ConfigError(f"task must be {' or '.join(get_args(DemoTask))}, got {self.task!r}")
        if not 0 <= self.careless_share < 1:
            raise ConfigError(f"careless_share must be in [0, 1), got {self.careless_share}")
        if self.careless_share and self.task != "beginning":
            raise ConfigError(f"careless_share is for --task beginning, got --task {self.task}")

        for name in ("stories", "instructions", "sentiment"):
            if getattr(self, name) < (least := int(name == "stories")):
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}")


def main(args: DemoArgs) -> dict[str, float]:
    with Run.start(__file__, args.output_dir, args) as run:
        # stories
        faults = Counter[str | None]()
        text_bytes = 0
        sample: list[str] = []
        started = time.perf_counter()

        with (
            write_jsonl(run.output_dir / "raw.jsonl") as add,
            write_jsonl(run.output_dir / "planted.jsonl") as note,
        ):
            for row in noisy_corpus(args.seed, args.stories, share=args.noise_share):
                add({"id": row["id"], "text": row["text"]})
                note({"id": row["id"], "planted": row["planted"], "source": row["source"]})
                faults[row["planted"]] += 1
                text_bytes += len(row["text"].encode())
                if row["planted"] is None and len(sample) < MEASURED:
                    sample.append(row["text"])

        speed = args.stories / (time.perf_counter() - started)

        # files for the later stages
        tasks = list(
            instructions(
                args.seed, args.instructions, task=args.task, careless_share=args.careless_share
            )
        )

        write_if_any(run.output_dir / "instructions.jsonl", tasks)
        write_if_any(run.output_dir / "chat.jsonl", [as_messages(task) for task in tasks])
        write_if_any(
            run.output_dir / "sentiment.jsonl", list(sentiment_rows(args.seed, args.sentiment))
        )

        code = list(functions(args.seed, args.functions))
        write_if_any(run.output_dir / "functions.jsonl", code)
        held_out = list(functions(args.seed, args.functions // 10, test=True))
        write_if_any(run.output_dir / "functions_test.jsonl", held_out)

        prompts = "".join(f"{opening}\n" for opening in openings(args.seed, OPENINGS))
        (run.output_dir / "prompts.txt").write_text(prompts, encoding="utf-8")

        # report
        planted = [
            [fault, "drop" if fault in DROPPED else "repair", faults[fault]]
            for fault in FAULTS
            if faults[fault]
        ]

        if planted:
            run.add_table("planted_noise", ["fault", "a cleaner should", "rows"], planted)

        # what counting words achieves on held-out stories: a model should do better
        cut = len(sample) * 19 // 20
        trigram = ngram_bits_per_byte(sample[:cut], sample[cut:], order=3)

        run.finish(
            variety(sample)
            | {
                "trigram_bits_per_byte": trigram,
                "documents": args.stories,
                "instruction_rows": len(tasks),
                "text_bytes": text_bytes,
                "planted_share": 1 - faults[None] / args.stories,
                "documents_per_s": speed,
            }
        )

    return run.metrics


def write_if_any(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a file of rows, unless none were asked for."""
    if rows:
        with write_jsonl(path) as add:
            for row in rows:
                add(row)


if __name__ == "__main__":
    command_line(main)
