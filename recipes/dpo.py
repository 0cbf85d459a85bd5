"""Align a language model to preferences by DPO, without a reward model.

    accelerate launch recipes/dpo.py --config recipes/dpo.yaml --model_name_or_path runs/sft
    hfstack run dpo --model_name_or_path runs/sft --datasets pairs.jsonl     # the same, shorter

reads   preferences (pairs, ratings, rankings or thumbs); a model that already answers
writes  the model or its adapter, checkpoints, samples.jsonl and run.json in --output_dir
"""

from trl import DPOConfig, DPOTrainer, ModelConfig, get_peft_config

from hfstack.config import command_line
from hfstack.data.sources import DataArgs
from hfstack.models.loading import load_causal_lm
from hfstack.publishing.checkpoint_push import push_checkpoints
from hfstack.runs.environment import is_sharded
from hfstack.runs.run import Run
from hfstack.tasks.preferences.alignment import (
    SampleArgs,
    evaluate_pairs,
    load_policy,
    load_recorded_preferences,
    sample_answers,
)
from hfstack.tasks.preferences.checks import check_reference, preference_problems
from hfstack.tasks.preferences.rows import PreferenceArgs
from hfstack.training.checkpointing import protect
from hfstack.training.preflight import checked


def main(
    model_args: ModelConfig,
    data_args: DataArgs,
    preference_args: PreferenceArgs,
    sample_args: SampleArgs,
    training_args: DPOConfig,
) -> dict[str, float]:
    """Train against the frozen reference, evaluate and save; return the metrics."""
    settings = (model_args, data_args, preference_args, sample_args, training_args)
    with Run.start(__file__, training_args.output_dir, *settings) as run:
        # data
        checkpoint = run.resume_point()
        check_reference(model_args, sharded=is_sharded(training_args))
        rows = load_recorded_preferences(run, model_args, data_args, preference_args)

        # model: the reference of an adapter is the model without it; of a whole model, a second
        # copy that stays as it is
        tokenizer, model = load_policy(model_args)
        reference = None if model_args.use_peft else load_causal_lm(model_args, tokenizer)
        problems = preference_problems(
            rows,
            tokenizer,
            model,
            max_length=training_args.max_length,
            on_bad_row=data_args.on_bad_row,
        )

        # trainer
        trainer = DPOTrainer(
            model=model,
            ref_model=reference,
            args=training_args,
            train_dataset=rows["train"],
            eval_dataset=rows.get("eval"),
            processing_class=tokenizer,
            peft_config=get_peft_config(model_args),
            callbacks=[
                sample_answers(run, sample_args, rows, tokenizer, model),
                *protect(run, push_checkpoints(training_args)),
            ],
        )
        trained = checked(trainer, tokenizer, problems).train(resume_from_checkpoint=checkpoint)

        # evaluate
        metrics = {"train_loss": trained.training_loss, "train_pairs": len(trainer.train_dataset)}
        if "eval" in rows:
            metrics |= evaluate_pairs(trainer, pairs=len(trainer.eval_dataset))
        return run.finish(metrics, trainer)


if __name__ == "__main__":
    command_line(main)
