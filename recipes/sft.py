"""Fine-tune a language model on conversations, or prompt + completion.

    accelerate launch recipes/sft.py --config recipes/sft.yaml --learning_rate 1e-5
    hfstack run sft --learning_rate 1e-5                                # the same, shorter

reads   rows of messages, of prompt + completion (columns by any name), or of text; a model with
        its tokenizer
writes  the model or its adapter, checkpoints, samples, answers and run.json in --output_dir
"""

from functools import partial
from typing import Any, cast

from trl import ModelConfig, SFTConfig

from hfstack.config import command_line
from hfstack.data.sources import DataArgs
from hfstack.evidence.before_after import watch_change
from hfstack.models import adapters, loading
from hfstack.publishing.checkpoint_push import push_checkpoints
from hfstack.runs.environment import is_sharded
from hfstack.runs.run import Run
from hfstack.tasks.causal_lm.document_scores import perplexity
from hfstack.tasks.sft import setup as fine_tuning
from hfstack.tasks.sft.answers import (
    answer_loss,
    choose_prompts,
    record_answers,
    watch_answers,
)
from hfstack.tasks.sft.columns import record_form
from hfstack.tasks.sft.inputs import SftArgs, load_recorded_rows
from hfstack.tokens.chat import stop_at_end_of_turn
from hfstack.training.callbacks import DerivedMetrics, Throughput
from hfstack.training.checkpointing import protect
from hfstack.training.preflight import checked
from hfstack.training.saving import save_merged, save_trained


def main(
    model_args: ModelConfig, data_args: DataArgs, sft_args: SftArgs, training_args: SFTConfig
) -> dict[str, float]:
    """Train, evaluate, answer and save; return the metrics."""
    settings = (model_args, data_args, sft_args, training_args)
    with Run.start(__file__, training_args.output_dir, *settings) as run:
        checkpoint, sharded = run.resume_point(), is_sharded(training_args)
        adapter, merge = model_args.use_peft, sft_args.merge_adapter
        adapters.check_adapter_settings(model_args, sharded=sharded, merge_adapter=merge)

        # data: conversations, prompts with their answers, or text
        base = model_args.model_name_or_path
        rows, find_places = load_recorded_rows(run, data_args, sft_args, base)

        # model, with the template and the end of turn that the rows need
        tokenizer = loading.load_tokenizer(model_args)
        model = loading.load_causal_lm(model_args, tokenizer, new_head=True)
        fine_tuning.check_sft_settings(training_args, model, rows)
        chat = "messages" in rows["train"].column_names
        fine_tuning.use_template(tokenizer, model, training_args, chat=chat, adapter=adapter)
        adapters.give_pad_token(tokenizer, model, may_grow=not adapter or merge)
        stop_at_end_of_turn(model, tokenizer)
        record_form(run, rows["train"], tokenizer)

        # rows as the model reads them
        encoded = fine_tuning.encode_rows(
            rows,
            tokenizer,
            model,
            training_args,
            data_args.on_bad_row,
            row_counts=run.record.rows,
            find_places=find_places,
        )
        problems = fine_tuning.row_problems(rows, encoded, tokenizer, model, training_args)
        packed = fine_tuning.pack_rows(encoded, training_args)

        # prompts to answer: held-out ones, short enough to leave room for an answer
        asked = choose_prompts(sft_args, rows, tokenizer, model)

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
                watch_answers(run, tokenizer, asked),
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
            metrics |= record_answers(run, trainer, tokenizer, asked)

        # finish
        if merge:
            save_merged(run, trainer, model_args, read)
        return run.finish(metrics, trainer)


if __name__ == "__main__":
    command_line(main)
