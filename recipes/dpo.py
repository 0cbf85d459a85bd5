"""Align a language model to preferences by DPO, without a reward model.

    accelerate launch recipes/dpo.py --config recipes/dpo.yaml --model_name_or_path runs/sft
    hfstack run dpo --model_name_or_path runs/sft --datasets pairs.jsonl     # the same, shorter

The reward of an answer is --beta times the log-ratio of its probabilities under the trained model
and under a frozen reference, and the loss of a pair is -log sigmoid(reward of the chosen answer -
reward of the rejected one): ln 2 before the first step (Rafailov et al. 2023, arXiv:2305.18290).
--loss_type chooses another: ipo aims at a fixed margin, for labels that are certain (Azar et al.
2023); hinge is SLiC's, without a gradient beyond a margin; robust takes --label_smoothing as the
share of pairs whose labels are swapped (Chowdhury et al. 2024).

Two models are in memory, or one with an adapter; kto takes single answers, orpo has no reference.

Watch eval_accuracy and its interval: 0.5 is chance. Both eval_logps fall in most runs; where the
one of chosen answers falls far, or eval_loss rises above ln 2, lower --learning_rate.

reads   preferences (pairs, ratings, rankings or thumbs); a model that already answers
writes  the model or its adapter, checkpoints, samples.jsonl and run.json in --output_dir
"""

from trl import DPOConfig, DPOTrainer, ModelConfig

from hfstack.config import command_line
from hfstack.data.sources import DataArgs
from hfstack.evidence.before_after import watch_change
from hfstack.models.adapters import new_adapter
from hfstack.models.loading import load_causal_lm
from hfstack.publishing.checkpoint_push import push_checkpoints
from hfstack.runs.run import Run
from hfstack.tasks.preferences import alignment
from hfstack.tasks.preferences.encode import OneEnd
from hfstack.tasks.preferences.pair_counting import EachPairCounts
from hfstack.tasks.preferences.rows import PreferenceArgs


class PairwiseDPOTrainer(EachPairCounts, OneEnd, DPOTrainer):
    """TRL's trainer, with metrics that are means over held-out pairs."""


def main(
    model_args: ModelConfig,
    data_args: DataArgs,
    preference_args: PreferenceArgs,
    sample_args: alignment.SampleArgs,
    training_args: DPOConfig,
) -> dict[str, float]:
    """Train against the frozen reference, evaluate and save; return the metrics."""
    settings = (model_args, data_args, preference_args, sample_args, training_args)
    with Run.start(__file__, training_args.output_dir, *settings) as run:
        # pairs and policy
        parts = alignment.load_pairs(run, model_args, data_args, preference_args, training_args)

        # reference: of an adapter it is the model without it; of a whole model, a second copy
        # that stays as it is
        reference = None if model_args.use_peft else load_causal_lm(model_args, parts.tokenizer)

        # trainer
        trainer = PairwiseDPOTrainer(
            model=parts.policy,
            ref_model=reference,
            args=training_args,
            train_dataset=parts.rows["train"],
            eval_dataset=parts.rows.get("eval"),
            processing_class=parts.tokenizer,
            peft_config=new_adapter(model_args, parts.policy, adapts_head=False),
            callbacks=alignment.callbacks(run, sample_args, parts, push_checkpoints(training_args)),
        )
        watch_change(run, sample_args, trainer, parts.held_out)

        # train, save and evaluate
        return run.finish(alignment.train_on_pairs(run, trainer, parts), trainer)


if __name__ == "__main__":
    command_line(main)
