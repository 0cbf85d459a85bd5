"""Fine-tune a language model on conversations, or prompt + completion.

    accelerate launch recipes/sft.py --config recipes/sft.yaml --learning_rate 1e-5
    hfstack run sft --learning_rate 1e-5                                # the same, shorter

reads   rows of messages, of prompt + completion (columns by any name), or of text; a model with
        its tokenizer
writes  the model or its adapter, checkpoints, samples, answers and run.json in --output_dir
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from trl import ModelConfig, SFTConfig

from hfstack.config import command_line
from hfstack.data.sources import DataArgs
from hfstack.evidence.before_after import watch_change
from hfstack.models import adapters, loading
from hfstack.models.context import context_length
from hfstack.publishing.checkpoint_push import push_checkpoints
from hfstack.runs.environment import is_sharded
from hfstack.runs.run import Run
from hfstack.tasks.causal_lm.document_scores import perplexity
from hfstack.tasks.sft import setup as fine_tuning
from hfstack.tasks.sft.answers import answer_loss, score_answers, watch_answers
from hfstack.tasks.sft.columns import Columns, convert_rows, load_instructions, record_form
from hfstack.tasks.sft.encoding import encode_user_texts, prompts_with_references
from hfstack.tasks.shared.probe_settings import ProbeArgs
from hfstack.tokens.chat import stop_at_end_of_turn
from hfstack.tokens.seams import answer_opening
from hfstack.training.callbacks import DerivedMetrics, Throughput
from hfstack.training.checkpointing import protect
from hfstack.training.preflight import checked
from hfstack.training.saving import save_merged, save_trained


@dataclass
class SftArgs(ProbeArgs):
    """How rows are read, and what is kept and measured beside the upstream settings."""

    prompt_column: str = "prompt"
    """Column that holds what is asked."""
    completion_column: str = "completion"
    """Column that holds the answer."""
    context_column: str | None = None
    """Column of further input, put below the prompt where it is not empty (`input` of instruction
    data).
    """
    as_chat: bool = True
    """Make prompt + completion a user's and an assistant's turn; off, join them as they are."""
    merge_adapter: bool = False
    """Save the whole model with the adapter merged; the adapter alone is kept in adapter/."""
    answer_rows: int = 0
    """Answer this many held-out prompts at the end and score them against their references (BLEU,
    chrF, ROUGE).
    """
    answer_tokens: int = 200
    """Longest answer and longest sample, in tokens."""
    sample_prompts: list[str] = field(default_factory=list)
    """Prompts whose answers are written to samples.jsonl at each evaluation; three of the held-out
    ones by default.
    """


def main(
    model_args: ModelConfig, data_args: DataArgs, sft_args: SftArgs, training_args: SFTConfig
) -> dict[str, float]:
    """Train, evaluate, answer and save; return the metrics."""
    settings = (model_args, data_args, sft_args, training_args)
    with Run.start(__file__, training_args.output_dir, *settings) as run:
        checkpoint, sharded = run.resume_point(), is_sharded(training_args)
        adapter, merge = model_args.use_peft, sft_args.merge_adapter
        adapters.check_adapter_settings(model_args, sharded=sharded, merge_adapter=merge)

        # data: prompts with a column of their own are split by it, so that none is on both sides
        columns = Columns(
            sft_args.prompt_column,
            sft_args.completion_column,
            sft_args.context_column,
            data_args.text_column,
        )
        quarantine, counts = run.output_dir / "quarantine.jsonl", run.record.rows
        splits, find_places = load_instructions(
            data_args, columns, quarantine_file=quarantine, row_counts=counts
        )
        run.record_inputs(model_args.model_name_or_path, **splits.inputs)
        rows = {
            name: convert_rows(split, columns, as_chat=sft_args.as_chat, row_counts=counts)
            for name, split in splits.items()
        }

        # model, with the template and the end of turn that the rows need
        tokenizer = loading.load_tokenizer(model_args)
        model = loading.load_causal_lm(model_args, tokenizer, new_head=True)
        fine_tuning.check_sft_settings(training_args, model, rows)
        chat = "messages" in rows["train"].column_names
        fine_tuning.use_template(tokenizer, model, training_args, chat=chat, adapter=adapter)
        adapters.give_pad_token(tokenizer, model, may_grow=not adapter or merge)
        stop_at_end_of_turn(model, tokenizer)
        record_form(run, rows["train"], tokenizer)
        opening = answer_opening(tokenizer) if chat else ""

        # rows as the model reads them
        encoded = fine_tuning.encode_rows(
            rows,
            tokenizer,
            model,
            training_args,
            data_args.on_bad_row,
            row_counts=counts,
            find_places=find_places,
        )
        problems = fine_tuning.row_problems(rows, encoded, tokenizer, model, training_args)
        packed = fine_tuning.pack_rows(encoded, training_args)

        # prompts to answer: held-out ones, short enough to leave room for an answer
        longest, context = sft_args.answer_tokens, context_length(model.config)
        asked = prompts_with_references(
            rows.get("eval", rows["train"]),
            tokenizer,
            limit=max(sft_args.answer_rows, 3),
            longest=context - longest if context is not None else None,
        )
        own = encode_user_texts(sft_args.sample_prompts, tokenizer, chat=chat)
        shown = own or [prompt for prompt, _ in asked[:3]]

        # trainer
        costs = fine_tuning.step_costs(packed["train"], model, training_args, adapter=adapter)
        throughput = Throughput(**costs)
        trainer = fine_tuning.SFTTrainerByTokens(
            model=model,
            args=fine_tuning.sft_trainer_settings(training_args),
            data_collator=fine_tuning.collator_for(model, tokenizer, training_args),
            train_dataset=packed["train"],
            eval_dataset=packed.get("eval"),
            processing_class=tokenizer,
            peft_config=adapters.new_adapter(model_args, model, adapts_head=False),
            callbacks=[
                throughput,
                fine_tuning.TokenCount(throughput.tokens_per_step),
                DerivedMetrics(lambda loss: {"perplexity": perplexity(loss)}),
                watch_answers(run, tokenizer, shown, max_new_tokens=longest, opening=opening),
                *protect(run, push_checkpoints(training_args)),
            ],
        )
        watch_change(run, sft_args, trainer, rows.get("eval", rows["train"]))

        trained = checked(trainer, tokenizer, problems).train(resume_from_checkpoint=checkpoint)
        read = partial(loading.load_causal_lm, tokenizer=tokenizer)
        save_trained(run, trainer, None if merge else read)

        # evaluate
        tuned = cast(Any, trainer.model)
        metrics = {"train_loss": trained.training_loss} | throughput.metrics()
        if "eval" in packed:
            metrics |= trainer.evaluate()
            metrics |= {} if sharded else answer_loss(tuned, tokenizer, encoded["eval"])
        if sft_args.answer_rows and not sharded:
            metrics |= score_answers(
                tuned,
                tokenizer,
                asked[: sft_args.answer_rows],
                max_new_tokens=longest,
                opening=opening,
                file=run.output_dir / "answers.jsonl" if trainer.is_world_process_zero() else None,
            )
            run.add_artifact("answers", "answers.jsonl")

        # finish
        if merge:
            save_merged(run, trainer, model_args, read)
        return run.finish(metrics, trainer)


if __name__ == "__main__":
    command_line(main)
