"""Train a reward model on pairs of answers, and measure it on unseen pairs.

    accelerate launch recipes/reward.py --config recipes/reward.yaml --model_name_or_path runs/sft
    hfstack run reward --model_name_or_path runs/sft --datasets pairs.jsonl     # the same, shorter

reads   preferences (pairs, ratings, rankings or thumbs); a causal language model or an encoder
        such as BERT
writes  the model with its head (or the adapter and the head), rewards.svg, pairs.jsonl and
        run.json in --output_dir
"""

import json
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from accelerate import PartialState
from trl import ModelConfig, RewardConfig

from hfstack.config import command_line
from hfstack.data.reading.jsonl import write_jsonl
from hfstack.data.sources import DataArgs
from hfstack.models.context import context_length
from hfstack.models.heads import lora_beside_head
from hfstack.models.loading import load_tokenizer
from hfstack.publishing.checkpoint_push import push_checkpoints
from hfstack.runs.rendering import record_rendering
from hfstack.runs.run import Run
from hfstack.tasks.preferences.checks import reward_problems
from hfstack.tasks.preferences.data import (
    follow_model,
    length_statistics,
    length_table,
    load_preferences,
)
from hfstack.tasks.preferences.encode import encode_pairs
from hfstack.tasks.preferences.metrics import accuracy_by_margin, calibration_bins, reward_metrics
from hfstack.tasks.preferences.pair_counting import PairwiseRewardTrainer
from hfstack.tasks.preferences.pictures import reward_histogram
from hfstack.tasks.preferences.reward_model import load_reward_model, score_sequences
from hfstack.tasks.preferences.rows import PreferenceArgs, answer_text
from hfstack.tokens.text_rows import Overlong, read_overlong
from hfstack.training.checkpointing import protect
from hfstack.training.preflight import checked
from hfstack.training.saving import save_trained


@dataclass
class RewardArgs:
    """What a reward model needs beside the upstream settings."""

    tokenizer_name_or_path: str | None = None
    """Tokenizer: a folder or a Hub id; the model's own by default."""
    overlong: Overlong = "fail"
    """Pairs longer than --max_length or the model's context: fail, truncate (the prompt at its
    beginning), or drop the pair. cut is the old name of truncate.
    """

    def __post_init__(self) -> None:
        self.overlong = read_overlong(self.overlong)


def main(
    model_args: ModelConfig,
    data_args: DataArgs,
    preference_args: PreferenceArgs,
    reward_args: RewardArgs,
    training_args: RewardConfig,
) -> dict[str, float]:
    """Train, measure on held-out pairs and save; return the metrics."""
    settings = (model_args, data_args, preference_args, reward_args, training_args)
    with Run.start(__file__, training_args.output_dir, *settings) as run:
        # data
        checkpoint = run.resume_point()
        quarantine, counts = run.output_dir / "quarantine.jsonl", run.record.rows
        how = follow_model(preference_args, model_args)
        splits = load_preferences(data_args, how, quarantine_file=quarantine, row_counts=counts)
        run.record_inputs(model_args.model_name_or_path, **splits.inputs)

        # model: its head is newly initialised unless the checkpoint is a reward model
        new_modules: list[str] = []
        tokenizer = load_tokenizer(model_args, reward_args.tokenizer_name_or_path)
        model = load_reward_model(model_args, tokenizer, new_modules=new_modules, training=True)

        # pairs as the model reads them, which is how it can score later on
        chat = not isinstance(splits["train"][0]["prompt"], str)
        record_rendering(run.record, model_args.model_name_or_path, tokenizer, chat=chat)
        context = context_length(model.config)
        limits = [training_args.max_length, context, tokenizer.model_max_length]
        max_length = min(limit for limit in limits if limit)
        encoded, kept, lengths = {}, {}, {}
        for name, rows in splits.items():
            encoded[name], kept[name] = encode_pairs(
                rows, tokenizer, max_length=max_length, overlong=reward_args.overlong, name=name
            )
            counts.leave_out(name, "too long, or of equal tokens", len(rows) - len(kept[name]))
            lengths[name] = length_statistics(rows.select(kept[name]))
        run.add_table("answer lengths", *length_table(lengths))

        # trainer
        trainer = PairwiseRewardTrainer(
            model=model,
            args=training_args,
            train_dataset=encoded["train"],
            eval_dataset=encoded.get("eval"),
            processing_class=tokenizer,
            peft_config=lora_beside_head(model_args, new_modules, model=cast(Any, model)),
            callbacks=[*protect(run, push_checkpoints(training_args))],
        )
        trained_model = cast(Any, trainer.model)
        problems = reward_problems(
            splits, encoded, tokenizer, model=trained_model, new_modules=new_modules
        )
        trained = checked(trainer, tokenizer, problems).train(resume_from_checkpoint=checkpoint)
        save_trained(run, trainer, partial(load_reward_model, tokenizer=tokenizer))

        # evaluate
        metrics: dict[str, float] = {"train_loss": trained.training_loss}
        metrics["train_pairs"] = len(encoded["train"])
        if "eval" in encoded:
            metrics |= trainer.evaluate()
            score = partial(
                score_sequences,
                cast(Any, trainer.model_wrapped),
                pad_token_id=model.config.get_text_config().pad_token_id,
                batch_size=training_args.eval_batch_size,
            )
            rewards = [score(encoded["eval"][f"{side}_ids"]) for side in ("chosen", "rejected")]
            rows = splits["eval"].select(kept["eval"]).to_list()
            shorter_wins = lengths["train"]["chosen_longer_share"] < 0.5
            metrics |= measure(run, rows, *rewards, shorter_wins=shorter_wins)

        return run.finish(metrics, trainer)


def measure(
    run: Run,
    rows: list[dict[str, Any]],
    chosen: list[float],
    rejected: list[float],
    *,
    shorter_wins: bool,
) -> dict[str, float]:
    """Save rewards of the held-out pairs, a picture and tables; return the metrics.

    Args:
        run: of this recipe.
        rows: the pairs as text.
        chosen: rewards of their better answers.
        rejected: rewards of the others.
        shorter_wins: whether the chosen answers of the train pairs are mostly the shorter ones.
    """
    if PartialState().is_main_process:
        with write_jsonl(run.output_dir / "pairs.jsonl") as add:
            for row, better, worse in zip(rows, chosen, rejected, strict=True):
                add({**row, "reward_chosen": better, "reward_rejected": worse})
        picture = reward_histogram(chosen, rejected)
        (run.output_dir / "rewards.svg").write_text(picture, encoding="utf-8")
    run.add_artifact("pairs", "pairs.jsonl")
    run.add_artifact("rewards", "rewards.svg")

    margins = [better - worse for better, worse in zip(chosen, rejected, strict=True)]
    columns = ["from", "to", "pairs", "accuracy"]
    run.add_table("accuracy by margin", columns, accuracy_by_margin(margins))
    run.add_table("calibration", ["P(right)", "accuracy", "pairs"], calibration_bins(margins))

    found = reward_metrics(
        chosen,
        rejected,
        chosen_lengths=[len(answer_text(row["chosen"])) for row in rows],
        rejected_lengths=[len(answer_text(row["rejected"])) for row in rows],
        prompts=[json.dumps(row["prompt"]) for row in rows],
        shorter_wins=shorter_wins,
    )
    return {f"eval_{key}": value for key, value in found.items()}


if __name__ == "__main__":
    command_line(main)
