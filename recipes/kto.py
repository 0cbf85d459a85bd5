"""Teach a language model from thumbs up and down, without pairs of answers: KTO.

    accelerate launch recipes/kto.py --config recipes/kto.yaml --model_name_or_path runs/sft
    hfstack run kto --model_name_or_path runs/sft --datasets thumbs.jsonl    # the same, shorter

Each answer counts by itself: where its thumb is up, its log-ratio to a frozen reference is pushed
above the mean of other answers, where it is down, below it; --beta says how sharply (Ethayarajh et
al. 2024, arXiv:2402.01306). Thumbs are what users of a product give. Where one kind is rare, weigh
it up with --desirable_weight or --undesirable_weight. --loss_type apo_zero_unpaired makes good
answers likelier and bad ones less likely without that mean, where the good ones are better than
what the model says by itself (D'Oosterlinck et al. 2024, arXiv:2408.06266).

Watch eval_rewards/chosen and eval_rewards/rejected part, and eval_kl, which says how far the policy
is from the reference. The mean of other answers is taken over a batch: it needs more than one row.

reads   thumbs (prompt, completion, label), or pairs, or ratings with a threshold; a model that
        already answers
writes  the model or its adapter, checkpoints, samples.jsonl and run.json in --output_dir
"""

from trl import KTOConfig, KTOTrainer, ModelConfig

from hfstack.config import command_line
from hfstack.data.sources import DataArgs
from hfstack.errors import refusals_of_upstream
from hfstack.evidence.before_after import watch_change
from hfstack.models.adapters import new_adapter
from hfstack.models.loading import load_causal_lm
from hfstack.publishing.checkpoint_push import push_checkpoints
from hfstack.runs.run import Run
from hfstack.tasks.preferences import alignment
from hfstack.tasks.preferences.checks import good_share
from hfstack.tasks.preferences.encode import OneEnd
from hfstack.tasks.preferences.pair_counting import EachThumbCounts
from hfstack.tasks.preferences.rows import PreferenceArgs


class EachThumbKTOTrainer(EachThumbCounts, OneEnd, KTOTrainer):
    """TRL's trainer, whose answers end once, and whose metrics are means over them."""


def main(
    model_args: ModelConfig,
    data_args: DataArgs,
    preference_args: PreferenceArgs,
    sample_args: alignment.SampleArgs,
    training_args: KTOConfig,
) -> dict[str, float]:
    """Train on good and bad answers, evaluate and save; return the metrics."""
    settings = (model_args, data_args, preference_args, sample_args, training_args)
    with Run.start(__file__, training_args.output_dir, *settings) as run:
        # one answer a row, with its thumb, and the policy
        parts = alignment.load_inputs(
            run, model_args, data_args, preference_args, training_args, form="labels"
        )
        thumbs, policy = parts.rows, parts.policy
        good = good_share(thumbs["train"])

        # trainer: a copy of the policy is the reference where no adapter can be switched off
        copied = not model_args.use_peft
        push = push_checkpoints(training_args)
        with refusals_of_upstream():
            trainer = EachThumbKTOTrainer(
                model=policy,
                ref_model=load_causal_lm(model_args, parts.tokenizer) if copied else None,
                args=training_args,
                train_dataset=thumbs["train"],
                eval_dataset=thumbs.get("eval"),
                processing_class=parts.tokenizer,
                peft_config=new_adapter(model_args, policy, adapts_head=False),
                callbacks=alignment.callbacks(run, sample_args, parts, push),
            )
        watch_change(run, sample_args, trainer, parts.held_out)
        trained = alignment.train_and_save(run, trainer, parts)

        # evaluate
        metrics = {
            "train_loss": trained.training_loss,
            "train_rows": len(trainer.train_dataset),
            "good_share": good,
        }
        if "eval" in thumbs:
            metrics |= trainer.evaluate()
        return run.finish(metrics, trainer)


if __name__ == "__main__":
    command_line(main)
