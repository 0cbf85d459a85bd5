"""Train answers and preferences in one stage by ORPO, without a reference model.

    accelerate launch recipes/orpo.py --config recipes/orpo.yaml --model_name_or_path runs/pretrain
    hfstack run orpo --model_name_or_path runs/pretrain --datasets pairs.jsonl  # the same, shorter

reads   preferences (pairs, ratings, rankings or thumbs); a language model
writes  the model or its adapter, checkpoints, samples.jsonl and run.json in --output_dir
"""

from trl import ModelConfig, get_peft_config

# experimental in TRL 1.16: it may change in any release
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from hfstack.config import command_line
from hfstack.data.sources import DataArgs
from hfstack.publishing.checkpoint_push import push_checkpoints
from hfstack.runs.environment import is_sharded
from hfstack.runs.run import Run
from hfstack.tasks.preferences import alignment
from hfstack.tasks.preferences.checks import (
    check_reference,
    fitting_prompts,
    preference_problems,
)
from hfstack.tasks.preferences.rows import PreferenceArgs
from hfstack.training.checkpointing import protect
from hfstack.training.preflight import checked


def main(
    model_args: ModelConfig,
    data_args: DataArgs,
    preference_args: PreferenceArgs,
    sample_args: alignment.SampleArgs,
    training_args: ORPOConfig,
) -> dict[str, float]:
    """Train on the chosen answers and the odds between both; return the metrics."""
    settings = (model_args, data_args, preference_args, sample_args, training_args)
    limit = training_args.max_length

    with Run.start(__file__, training_args.output_dir, *settings) as run:
        # data
        checkpoint = run.resume_point()
        check_reference(model_args, sharded=is_sharded(training_args))
        rows = alignment.load_recorded_preferences(run, model_args, data_args, preference_args)

        # model
        tokenizer, model = alignment.load_policy(model_args)
        problems = preference_problems(
            rows, tokenizer, model, max_length=limit, on_bad_row=data_args.on_bad_row
        )

        # The other trainers leave out prompts that fill the context by themselves.
        if data_args.on_bad_row != "fail" and limit is not None:
            rows = fitting_prompts(rows, tokenizer, max_length=limit)

        # trainer
        samples = alignment.sample_answers(run, sample_args, rows, tokenizer, model)
        trainer = ORPOTrainer(
            model=model,
            args=training_args,
            train_dataset=rows["train"],
            eval_dataset=rows.get("eval"),
            processing_class=tokenizer,
            peft_config=get_peft_config(model_args),
            callbacks=[samples, *protect(run, push_checkpoints(training_args))],
        )
        trained = checked(trainer, tokenizer, problems).train(resume_from_checkpoint=checkpoint)

        # evaluate
        metrics = {"train_loss": trained.training_loss, "train_pairs": len(rows["train"])}
        if "eval" in rows:
            metrics |= alignment.evaluate_pairs(trainer, pairs=len(rows["eval"]))
        return run.finish(metrics, trainer)


if __name__ == "__main__":
    command_line(main)
