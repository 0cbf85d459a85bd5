"""Teach a language model from thumbs up and down, without pairs of answers: KTO.

    accelerate launch recipes/kto.py --config recipes/kto.yaml --model_name_or_path runs/sft
    hfstack run kto --model_name_or_path runs/sft --datasets thumbs.jsonl    # the same, shorter

reads   thumbs (prompt, completion, label), or pairs, or ratings with a threshold; a model that
already answers writes  the model or its adapter, checkpoints, samples.jsonl and run.json in
--output_dir"""

from dataclasses import dataclass, field
from functools import partial

from trl import KTOConfig, KTOTrainer, ModelConfig, get_peft_config

from hfstack.config import command_line
from hfstack.data.sources import DataArgs, describe_sources
from hfstack.errors import DataError
from hfstack.models.adapters import give_pad_token
from hfstack.models.context import context_length
from hfstack.models.loading import load_causal_lm, load_tokenizer
from hfstack.publishing.checkpoint_push import push_checkpoints
from hfstack.runs.environment import is_sharded
from hfstack.runs.run import Run
from hfstack.tasks.preferences.checks import check_policy, check_preferences, prompts_to_show
from hfstack.tasks.preferences.data import load_preferences
from hfstack.tasks.preferences.rows import PreferenceArgs
from hfstack.tasks.sft.answers import answer_pairs
from hfstack.tokens.chat import stop_at_end_of_turn
from hfstack.training.callbacks import SampleTable
from hfstack.training.checkpointing import protect


@dataclass
class KtoArgs:
    """What is written while training, beside the upstream settings."""

    sample_prompts: list[str] = field(default_factory=list)
    """Prompts whose answers are written to samples.jsonl at each evaluation; three of the held-out
    ones by default.
    """
    sample_tokens: int = 100
    """Longest sample, in tokens."""


def main(
    model_args: ModelConfig,
    data_args: DataArgs,
    preference_args: PreferenceArgs,
    kto_args: KtoArgs,
    training_args: KTOConfig,
) -> dict[str, float]:
    """Train against the frozen reference, evaluate and save; return the metrics."""
    settings = (model_args, data_args, preference_args, kto_args, training_args)
    with Run.start(__file__, training_args.output_dir, *settings) as run:
        checkpoint = run.resume_point()
        check_policy(model_args, sharded=is_sharded(training_args))
        rows = load_preferences(
            data_args,
            preference_args,
            form="labels",
            quarantine_file=run.output_dir / "quarantine.jsonl",
        )

        run.record_inputs(
            model_args.model_name_or_path,
            train=describe_sources(data_args.datasets),
            eval=describe_sources(data_args.eval_datasets),
        )

        good = sum(rows["train"]["label"]) / len(rows["train"])
        if not 0 < good < 1:
            raise DataError(
                "all train labels are the same: KTO needs answers with a thumb up and with a "
                "thumb down"
            )

        tokenizer = load_tokenizer(model_args)
        model = load_causal_lm(model_args, tokenizer)

        # The reference of an adapter is the model without it; of a whole model, a second copy that
        # stays as it is.
        reference = None if model_args.use_peft else load_causal_lm(model_args, tokenizer)
        give_pad_token(tokenizer, model, may_grow=False)
        stop_at_end_of_turn(model, tokenizer)
        max_length = training_args.max_length
        check_preferences(
            rows, tokenizer, model, max_length=max_length, on_bad_row=data_args.on_bad_row
        )

        longest = context_length(model.config)
        longest = longest - kto_args.sample_tokens if longest is not None else None
        shown = prompts_to_show(kto_args.sample_prompts, rows, tokenizer, longest=longest)
        sample = partial(
            answer_pairs, tokenizer=tokenizer, prompts=shown, max_new_tokens=kto_args.sample_tokens
        )

        run.add_artifact("samples", "samples.jsonl")
        trainer = KTOTrainer(
            model=model,
            ref_model=reference,
            args=training_args,
            train_dataset=rows["train"],
            eval_dataset=rows.get("eval"),
            processing_class=tokenizer,
            peft_config=get_peft_config(model_args),
            callbacks=[
                SampleTable(run.output_dir / "samples.jsonl", sample),
                *protect(run, push_checkpoints(training_args)),
            ],
        )

        trained = trainer.train(resume_from_checkpoint=checkpoint)
        metrics = {
            "train_loss": trained.training_loss,
            "train_rows": len(trainer.train_dataset),
            "good_share": good,
        }

        if "eval" in rows:
            metrics |= trainer.evaluate()
        return run.finish(metrics, trainer)


if __name__ == "__main__":
    command_line(main)
