"""Train answers and preferences in one stage by ORPO, without a reference model.

    accelerate launch recipes/orpo.py --config recipes/orpo.yaml --model_name_or_path runs/pretrain
    hfstack run orpo --model_name_or_path runs/pretrain --datasets pairs.jsonl  # the same, shorter

The loss is that of sft on the chosen answer, plus --beta times -log sigmoid of the log odds ratio
of chosen to rejected; the odds are p / (1 - p), p being an answer's probability a token (Hong et
al. 2024, arXiv:2403.07691). One model is in memory, and it need not answer yet: the first term
teaches it to.

Watch eval_nll_loss beside eval_log_odds_ratio: a large --beta improves the second at the cost of
the first. An accuracy above one half may be the starting model's own, since there is no reference
to measure against; evaluate a run of one step to know.

reads   preferences (pairs, ratings, rankings or thumbs); a language model
writes  the model or its adapter, checkpoints, samples.jsonl and run.json in --output_dir
"""

from trl import ModelConfig

# experimental in TRL 1.16: it may change in any release
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from hfstack.config import command_line
from hfstack.data.sources import DataArgs
from hfstack.evidence.before_after import watch_change
from hfstack.models.adapters import new_adapter
from hfstack.publishing.checkpoint_push import push_checkpoints
from hfstack.runs.run import Run
from hfstack.tasks.preferences import alignment
from hfstack.tasks.preferences.checks import fitting_prompts
from hfstack.tasks.preferences.encode import TokensAsGiven, encode_sides
from hfstack.tasks.preferences.pair_counting import EachPairCounts
from hfstack.tasks.preferences.rows import PreferenceArgs
from hfstack.tasks.preferences.step_means import WholeStepMeans


class PairwiseORPOTrainer(EachPairCounts, WholeStepMeans, TokensAsGiven, ORPOTrainer):
    """TRL's trainer, on our tokens, with means over whole steps and evaluations."""


def main(
    model_args: ModelConfig,
    data_args: DataArgs,
    preference_args: PreferenceArgs,
    sample_args: alignment.SampleArgs,
    training_args: ORPOConfig,
) -> dict[str, float]:
    """Train on the chosen answers and the odds between both; return the metrics."""
    settings = (model_args, data_args, preference_args, sample_args, training_args)
    limit, push = training_args.max_length, push_checkpoints(training_args)

    with Run.start(__file__, training_args.output_dir, *settings) as run:
        # pairs and model
        parts = alignment.load_pairs(run, model_args, data_args, preference_args, training_args)
        model, tokenizer = parts.policy, parts.tokenizer

        # TRL's other trainers leave out prompts that fill the context by themselves.
        if data_args.on_bad_row != "fail" and limit is not None:
            parts.rows = fitting_prompts(
                parts.rows, tokenizer, max_length=limit, row_counts=run.record.rows
            )

        # trainer: one model, since no term of the loss needs a reference
        encoded = encode_sides(parts.rows, tokenizer)
        trainer = PairwiseORPOTrainer(
            model=model,
            args=training_args,
            train_dataset=encoded["train"],
            eval_dataset=encoded.get("eval"),
            processing_class=tokenizer,
            peft_config=new_adapter(model_args, model),
            callbacks=alignment.callbacks(run, sample_args, parts, push),
        )
        watch_change(run, sample_args, trainer, parts.held_out)
        trained = alignment.train_and_save(run, trainer, parts)

        # evaluate
        metrics = {"train_loss": trained.training_loss, "train_pairs": len(encoded["train"])}
        if "eval" in encoded:
            metrics |= alignment.evaluate_pairs(trainer, pairs=len(encoded["eval"]))
        return run.finish(metrics, trainer)


if __name__ == "__main__":
    command_line(main)
