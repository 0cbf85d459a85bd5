"""Teach a language model from thumbs up and down, without pairs of answers: KTO.

    accelerate launch recipes/kto.py --config recipes/kto.yaml --model_name_or_path runs/sft
    hfstack run kto --model_name_or_path runs/sft --datasets thumbs.jsonl    # the same, shorter

reads   thumbs (prompt, completion, label), or pairs, or ratings with a threshold; a model that
        already answers
writes  the model or its adapter, checkpoints, samples.jsonl and run.json in --output_dir
"""

from trl import KTOConfig, KTOTrainer, ModelConfig, get_peft_config

from hfstack.config import command_line
from hfstack.data.sources import DataArgs
from hfstack.models.loading import load_causal_lm
from hfstack.publishing.checkpoint_push import push_checkpoints
from hfstack.runs.environment import is_sharded
from hfstack.runs.run import Run
from hfstack.tasks.preferences.alignment import (
    SampleArgs,
    load_policy,
    load_recorded_preferences,
    sample_answers,
)
from hfstack.tasks.preferences.checks import check_reference, good_share, preference_problems
from hfstack.tasks.preferences.rows import PreferenceArgs
from hfstack.training.checkpointing import protect
from hfstack.training.preflight import checked


def main(
    model_args: ModelConfig,
    data_args: DataArgs,
    preference_args: PreferenceArgs,
    sample_args: SampleArgs,
    training_args: KTOConfig,
) -> dict[str, float]:
    """Train against the frozen reference, evaluate and save; return the metrics."""
    settings = (model_args, data_args, preference_args, sample_args, training_args)
    output_dir, limit = training_args.output_dir, training_args.max_length

    with Run.start(__file__, output_dir, *settings) as run:
        # data: one answer a row, with its thumb
        checkpoint = run.resume_point()
        check_reference(model_args, sharded=is_sharded(training_args))
        rows = load_recorded_preferences(run, model_args, data_args, preference_args, form="labels")
        good = good_share(rows["train"])

        # model, and a copy of it as the reference where no adapter can be switched off
        tokenizer, model = load_policy(model_args)
        copied = not model_args.use_peft
        problems = preference_problems(
            rows, tokenizer, model, max_length=limit, on_bad_row=data_args.on_bad_row
        )

        # trainer
        samples = sample_answers(run, sample_args, rows, tokenizer, model)
        trainer = KTOTrainer(
            model=model,
            ref_model=load_causal_lm(model_args, tokenizer) if copied else None,
            args=training_args,
            train_dataset=rows["train"],
            eval_dataset=rows.get("eval"),
            processing_class=tokenizer,
            peft_config=get_peft_config(model_args),
            callbacks=[samples, *protect(run, push_checkpoints(training_args))],
        )
        trained = checked(trainer, tokenizer, problems).train(resume_from_checkpoint=checkpoint)

        # evaluate
        metrics = {"train_loss": trained.training_loss, "good_share": good}
        metrics["train_rows"] = len(trainer.train_dataset)
        metrics |= trainer.evaluate() if "eval" in rows else {}
        return run.finish(metrics, trainer)


if __name__ == "__main__":
    command_line(main)
