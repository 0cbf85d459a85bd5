"""Distill a language model into a smaller one, by the teacher's next tokens.

    accelerate launch recipes/distill.py --config recipes/distill.yaml --teacher_model runs/large
    hfstack run distill --teacher_model runs/large --model_name_or_path runs/small # the same

The loss is the divergence between the next tokens of both on the rows of sft, over the tokens that
sft would learn: forward KL (Hinton et al. 2015), reverse KL (Gu et al. 2024) or generalised JSD
(Agarwal et al. 2024), perhaps beside the rows' own answers. Both have one tokenizer; where they do
not, let the teacher answer and train by sft on the answers (docs/recipes/distill.md).

reads   rows as sft reads them; a teacher; a student with the same tokenizer, or an architecture
writes  the model or its adapter, checkpoints, samples, answers and run.json in --output_dir
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from peft import get_peft_model
from trl import ModelConfig, SFTConfig

from hfstack.config import command_line
from hfstack.data.sources import DataArgs
from hfstack.errors import refusals_of_upstream
from hfstack.evidence.before_after import watch_change
from hfstack.models import adapters, loading
from hfstack.publishing.checkpoint_push import push_checkpoints
from hfstack.runs.run import Run
from hfstack.tasks.distillation import setup as distillation
from hfstack.tasks.distillation.student import PartsOfLoss, use_distilled_loss
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
from hfstack.training.callbacks import Throughput
from hfstack.training.checkpointing import protect
from hfstack.training.preflight import checked
from hfstack.training.saving import save_merged, save_trained


@dataclass
class StudentArgs(SftArgs):
    """How rows are read, and what is kept and measured, as in sft; and the tokenizer."""

    tokenizer_name_or_path: str | None = None
    """Tokenizer: a folder or a Hub id; by default the student's, of an architecture the teacher's.
    """


def main(
    model_args: ModelConfig,
    data_args: DataArgs,
    student_args: StudentArgs,
    distill_args: distillation.DistillArgs,
    training_args: SFTConfig,
) -> dict[str, float]:
    """Train the student against its teacher, evaluate and save; return the metrics."""
    args = student_args
    settings = (model_args, data_args, student_args, distill_args, training_args)
    with Run.start(__file__, training_args.output_dir, *settings) as run:
        checkpoint, merge = run.resume_point(), args.merge_adapter
        adapters.check_adapter_settings(model_args, merge_adapter=merge)
        distillation.check_distill_settings(distill_args, training_args)

        # data, split as sft splits it
        models = (model_args.model_name_or_path, distill_args.teacher_model)
        rows, places = load_recorded_rows(run, data_args, args, *models)

        # student, with the template and the end of turn that the rows need
        tokenizer = distillation.load_student_tokenizer(
            model_args, distill_args, args.tokenizer_name_or_path
        )
        model: Any = distillation.load_student(distill_args, model_args, tokenizer)
        fine_tuning.check_sft_settings(training_args, model, rows)
        chat = "messages" in rows["train"].column_names
        fine_tuning.use_template(tokenizer, model, training_args, chat=chat, adapter=True)
        adapters.give_pad_token(tokenizer, model, may_grow=False)
        stop_at_end_of_turn(model, tokenizer)
        record_form(run, rows["train"], tokenizer)

        # rows as both models read them, and what the teacher says of them
        on_bad_row = data_args.on_bad_row
        encoded = fine_tuning.encode_rows(
            rows,
            tokenizer,
            model,
            training_args,
            on_bad_row,
            row_counts=run.record.rows,
            find_places=places,
        )
        problems = fine_tuning.row_problems(rows, encoded, tokenizer, model, training_args)
        taught = distillation.prepare_teacher(
            distill_args, model_args, training_args, tokenizer, student=model, encoded=encoded
        )
        packed = fine_tuning.pack_rows(taught.rows, training_args)

        # trainer: the stock one, of a model whose loss is its distance from the teacher
        parts = PartsOfLoss()
        use_distilled_loss(model, taught.teacher, distill_args.objective, parts)
        adapter = adapters.new_adapter(model_args, model, adapts_head=False)

        # what is logged beside the loss
        costs = fine_tuning.step_costs(
            packed["train"], model, training_args, adapter=adapter is not None
        )
        throughput = Throughput(**costs)
        asked = choose_prompts(args, rows, tokenizer, model)
        collate = fine_tuning.collator_for(model, tokenizer, training_args)

        with refusals_of_upstream():
            trainer = distillation.DistillTrainer(
                model=model if adapter is None else get_peft_model(model, adapter),
                args=distillation.distill_trainer_settings(training_args),
                data_collator=distillation.WithPlaces(collate),
                train_dataset=packed["train"],
                eval_dataset=packed.get("eval"),
                processing_class=tokenizer,
                callbacks=[
                    throughput,
                    parts,
                    watch_answers(run, tokenizer, asked),
                    *protect(run, push_checkpoints(training_args)),
                ],
            )
        watch_change(run, args, trainer, rows.get("eval", rows["train"]))

        trained = checked(trainer, tokenizer, problems).train(resume_from_checkpoint=checkpoint)
        read = partial(loading.load_causal_lm, tokenizer=tokenizer)
        save_trained(run, trainer, None if merge else read)

        # evaluate: the distance, and the loss of the rows' own answers beside the teacher's
        trained_model: Any = trainer.model
        metrics = {"train_loss": trained.training_loss} | throughput.metrics() | taught.metrics
        if "eval" in packed:
            metrics |= trainer.evaluate()
            metrics |= answer_loss(trained_model, tokenizer, encoded["eval"])
        if args.answer_rows:
            metrics |= record_answers(run, trainer, tokenizer, asked)

        # finish
        if merge:
            save_merged(run, trainer, model_args, read)
        return run.finish(metrics, trainer)


if __name__ == "__main__":
    command_line(main)
