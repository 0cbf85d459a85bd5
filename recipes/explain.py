"""Show which tokens moved a classifier, by integrated gradients, on a page.

    accelerate launch recipes/explain.py --config recipes/explain.yaml --steps 64
    hfstack run explain --model_name_or_path runs/classify --texts "a dull film"

reads   a model that classify has trained, or one like it; texts, or rows with its columns
writes  explanations.html and explanations.jsonl in --output_dir
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from accelerate import Accelerator
from trl import ModelConfig

from hfstack.config import command_line
from hfstack.data.reading.jsonl import write_jsonl
from hfstack.data.sources import Source, SourceLog, describe_sources, iterate_rows
from hfstack.errors import ConfigError, DataError
from hfstack.runs.run import Run, RunArgs
from hfstack.tasks.classification.attributions import explain_text
from hfstack.tasks.classification.attributions_page import explanation_page
from hfstack.tasks.classification.model import load_trained_classifier


@dataclass
class ExplainArgs:
    """What to explain, and how exactly."""

    texts: list[str] = field(default_factory=list)
    """Texts to explain."""
    datasets: list[Source] = field(default_factory=list)
    """Rows to explain, beside or instead of texts: local files, globs, folders or Hub ids."""
    max_rows: int = 20
    """Explain this many rows of each dataset, from its beginning."""
    label: str | None = None
    """Which label's logit to explain; by default the one that the model says."""
    steps: int = 32
    """Points of the path; doubled up to 512 until the completeness check is within the tolerance.
    """
    tolerance: float = 0.01
    """What the attributions may miss of the logit difference, as a share of it."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.max_rows < 1:
            raise ConfigError(
                f"--steps and --max_rows must be at least 1, got {self.steps} and {self.max_rows}"
            )
        if self.tolerance <= 0:
            raise ConfigError(f"--tolerance must be above 0, got {self.tolerance}")
        if not self.texts and not self.datasets:
            raise ConfigError('nothing to explain: give --texts "..." or --datasets file.jsonl')


def main(model_args: ModelConfig, explain_args: ExplainArgs, run_args: RunArgs) -> dict[str, float]:
    """Explain each text, print the check and write the page."""
    with Run.start(__file__, run_args.output_dir, model_args, explain_args, run_args) as run:
        # model
        run.record_inputs(model_args.model_name_or_path)
        model, tokenizer, info = load_trained_classifier(model_args)
        model.to(Accelerator().device)  # pyright: ignore[reportArgumentType]

        # data
        columns = [name for name in (info.text_column, info.text_pair_column) if name is not None]
        texts: list[tuple[str, ...]] = [(text,) for text in explain_args.texts]

        read: SourceLog = {}
        rows: Iterable[Any] = ()
        if explain_args.datasets:
            rows = iterate_rows(
                explain_args.datasets, columns=columns, max_rows=explain_args.max_rows, log=read
            )
        for row in rows:
            if absent := [name for name in columns if name not in row]:
                raise DataError(
                    f"explain needs the column {absent[0]!r} of the model; found: {', '.join(row)}"
                )
            texts.append(tuple(row[name] for name in columns))

        run.record_inputs(explain=describe_sources(explain_args.datasets, read))

        # explain
        settings = {
            "label": explain_args.label,
            "steps": explain_args.steps,
            "tolerance": explain_args.tolerance,
        }

        found = []
        for text in texts:
            one = explain_text(model, tokenizer, info, text, max_length=info.max_length, **settings)
            found.append(one)
            print(
                f"{one.label}: {one.logit:+.4f} - {one.baseline_logit:+.4f} = "
                f"{one.logit - one.baseline_logit:+.4f}, "
                f"attributions {one.attributed:+.4f}, off by {one.delta:+.5f} ({one.steps} steps) "
                f" {text[0][:50]}"
            )

        # write
        page = explanation_page(found, model=model_args.model_name_or_path or "")
        (run.output_dir / "explanations.html").write_text(page, encoding="utf-8")

        with write_jsonl(run.output_dir / "explanations.jsonl") as add:
            for one in found:
                add(asdict(one) | {"delta": one.delta})

        run.add_artifact("explanations", "explanations.jsonl")
        run.add_artifact("page", "explanations.html")

        # check
        worst = max(found, key=lambda one: one.relative_delta)
        complete = sum(one.relative_delta <= explain_args.tolerance for one in found)
        print(f"completeness: {complete} of {len(found)} within {100 * explain_args.tolerance:g} %")

        return run.finish(
            {
                "texts": len(found),
                "complete_share": complete / len(found),
                "largest_delta": max(abs(one.delta) for one in found),
                "largest_relative_delta": worst.relative_delta,
            }
        )


if __name__ == "__main__":
    command_line(main)
