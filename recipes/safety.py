"""Measure a model's refusals, toxicity, personal data and memorised text.

    accelerate launch recipes/safety.py --config recipes/safety.yaml --harmful_prompts bad.txt
    hfstack run safety --harmful_prompts bad.txt --harmless_prompts fine.txt     # the same, shorter

reads   a causal language model; prompts of yours, one a line or rows with `prompt`; training text
writes  judged_answers.jsonl (each answer with what was found in it) and run.json in --output_dir
"""

from dataclasses import dataclass, field
from typing import Any, cast

from accelerate import Accelerator
from trl import ModelConfig

from hfstack.config import command_line
from hfstack.data.reading.jsonl import write_jsonl
from hfstack.data.sources import Source, SourceLog, as_sources, describe_sources
from hfstack.errors import ConfigError
from hfstack.evidence.measured import Measured
from hfstack.evidence.safety import (
    add_copies,
    add_extraction,
    add_personal_data,
    add_refusals,
    add_toxicity,
    extract,
    load_judge,
    longest_copies,
    read_prompts,
)
from hfstack.evidence.training_text import describe_text, find_training_text, training_texts
from hfstack.logs import get_logger
from hfstack.models.loading import load_causal_lm, load_tokenizer, require_model_name
from hfstack.runs.run import Run, RunArgs
from hfstack.tasks.causal_lm.generate import generate_from_texts
from hfstack.tasks.causal_lm.prompt_format import find_prompt_format
from hfstack.tasks.rewards.classifier import ClassifierReward
from hfstack.tokens.chat import stop_at_end_of_turn
from hfstack.tokens.turns import extract_text

logger = get_logger(__name__)


@dataclass
class SafetyArgs:
    """Whose prompts are answered, and who judges."""

    harmful_prompts: list[Source] = field(default_factory=list)
    """Prompts that should be refused: text with one a line, or rows with a column `prompt`."""
    harmless_prompts: list[Source] = field(default_factory=list)
    """Prompts that should be answered."""
    refusal_judge: str | None = None
    """Who says what is a refusal: the folder of a classifier, or an endpoint that answers as one
    for rewards; by default a rule that knows English phrases.
    """
    refusal_label: str = "refusal"
    """Label of that classifier that means a refusal."""
    toxicity_classifier: str | None = None
    """Folder of a classifier that says what is toxic; not measured without one."""
    toxicity_label: str = "toxic"
    """Label of that classifier that means toxic."""
    max_new_tokens: int = 64
    """Longest answer, in tokens."""
    batch_size: int = 16
    """Prompts per batch."""


@dataclass
class MemorisationArgs:
    """Which training text is looked for in what the model writes."""

    training_text: list[str] = field(default_factory=list)
    """Files or folders of training text, or of packed blocks; by default what the runs behind the
    model name.
    """
    control_text: list[str] = field(default_factory=list)
    """Text of the same kind that the model was not trained on: what it gives back of that was not
    memorised.
    """
    extraction_tokens: int = 32
    """Tokens of a text that the model reads, and that it has to give back behind them."""
    extraction_texts: int = 200
    """Texts that this is tried on, from the beginning of the training text; 0 for none."""


def main(
    model_args: ModelConfig, args: SafetyArgs, memory_args: MemorisationArgs, run_args: RunArgs
) -> dict[str, float]:
    """Let the model answer, judge the answers, and return the metrics."""
    settings = (model_args, args, memory_args, run_args)
    with Run.start(__file__, run_args.output_dir, *settings) as run:
        # data: what is looked for is known before a model is loaded
        name, measured = require_model_name(model_args), Measured()
        run.record_inputs(name, args.refusal_judge, args.toxicity_classifier)
        asked: dict[str, list[Any]] = {}
        files = {"harmful": args.harmful_prompts, "harmless": args.harmless_prompts}
        read: SourceLog = {}
        for kind, given in files.items():
            if sources := as_sources(given, document="line"):
                asked[kind] = read_prompts(sources, read)
        both = [*args.harmful_prompts, *args.harmless_prompts]
        run.record_inputs(prompts=describe_sources(both, read))

        trained_on = memory_args.training_text or find_training_text(name)
        texts = {"extracted": trained_on, "control_extracted": memory_args.control_text}
        run.record_inputs(text=describe_text([*trained_on, *memory_args.control_text]))
        if not asked and not trained_on:
            raise ConfigError("name --harmful_prompts, --harmless_prompts or --training_text")

        # models
        device = Accelerator().device
        judge = load_judge(args.refusal_judge, args.refusal_label, device=device)
        toxicity = None
        if args.toxicity_classifier:
            toxicity = ClassifierReward(
                args.toxicity_classifier, args.toxicity_label, device=device, with_prompt=False
            )
        tokenizer = load_tokenizer(model_args)
        model = cast(Any, load_causal_lm(model_args, tokenizer)).to(device).eval()
        prompt_format = find_prompt_format(name, tokenizer)
        if prompt_format.kind == "chat":
            stop_at_end_of_turn(model, tokenizer)

        # evaluate: the likeliest answers
        rows: list[dict[str, Any]] = []
        for kind, prompts in asked.items():
            completions = generate_from_texts(
                model,
                tokenizer,
                prompts,
                kind=prompt_format.kind,
                max_new_tokens=args.max_new_tokens,
                temperature=0.0,
                batch_size=args.batch_size,
            )
            answers = [one.completion for one in completions]
            refused = add_refusals(measured, kind, answers, judge(prompts, answers))
            toxic = toxicity(prompts, answers) if toxicity else [None] * len(answers)
            add_toxicity(measured, kind, toxic)
            for given, *found in zip(prompts, answers, refused, toxic, strict=True):
                found = dict(zip(("answer", "refused", "toxicity"), found, strict=True))
                rows.append({"kind": kind, "prompt": extract_text(given), **found})

        if rows:
            answers = [row["answer"] for row in rows]
            personal = add_personal_data(measured, [row["prompt"] for row in rows], answers)
            copies = longest_copies(answers, training_texts(trained_on, tokenizer))
            if trained_on:
                add_copies(measured, copies)
            for row, kinds, copied in zip(rows, personal, copies, strict=True):
                row |= {"personal_data": kinds, "copied": copied.text}

        # and what the model gives back of its training text
        for prefix, places in texts.items() if memory_args.extraction_texts else ():
            shares = extract(
                model,
                tokenizer,
                training_texts(places, tokenizer),
                tokens=memory_args.extraction_tokens,
                most=memory_args.extraction_texts,
                batch_size=args.batch_size,
            )
            if places:
                add_extraction(measured, prefix, shares)
        if not trained_on:
            logger.warning("memorised text was not looked for: --training_text names none")

        # finish
        with write_jsonl(run.output_dir / "judged_answers.jsonl") as write_row:
            for row in rows:
                write_row(row)
        run.add_artifact("judged_answers", "judged_answers.jsonl")
        measured.warn_of_few()
        print("\n".join(measured.lines()))
        return run.finish(measured.metrics)


if __name__ == "__main__":
    command_line(main)
