"""Train a model with GRPO on rewards that can be checked, such as right answers.

    accelerate launch recipes/grpo.py --config recipes/grpo.yaml --learning_rate 1e-6
    hfstack run grpo --learning_rate 1e-6                               # the same, shorter

The advantage of an answer is its reward minus the mean of the group of answers to its prompt, in
standard deviations of that group (Shao et al. 2024, arXiv:2402.03300). The KL to the starting
model, times --kl_coef, is part of the loss. The trainer is that of ppo without its critic.

reads   rows with a column `prompt` and what the rewards below read (`answer`); a model; or a
        reward model or endpoint
writes  the model or its adapter, tokenizer, checkpoints, samples and run.json in --output_dir
"""

import re
from typing import Any

from trl import ModelConfig

from hfstack.config import command_line
from hfstack.data.sources import DataArgs
from hfstack.evidence.before_after import watch_change
from hfstack.publishing.checkpoint_push import push_checkpoints
from hfstack.runs.run import Run
from hfstack.tasks.rl import online
from hfstack.tasks.rl.ppo.group_config import GRPOConfig
from hfstack.tokens.turns import extract_text

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def exact_answer(
    prompts: list[Any], completions: list[Any], answer: list[Any], **columns: Any
) -> list[float | None]:
    """Return 1 when the completion's last number is that of the column `answer`.

    None where that holds no number.
    """
    return [
        float(last_number(extract_text(completion)) == last_number(text))
        if last_number(text) is not None
        else None
        for completion, text in zip(completions, answer, strict=True)
    ]


def well_formed(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """Return 1 when the completion ends with `#### <number>`, as GSM8K's answers do."""
    return [
        float(re.search(r"\n#### -?[\d,.]+\s*$", extract_text(completion)) is not None)
        for completion in completions
    ]


def last_number(text: Any) -> float | None:
    """Return the last number of a text, or a number; commas may part thousands."""
    found = NUMBER.findall(str(text))
    return float(found[-1].replace(",", "")) if found else None


# Used when no --reward_model is given; edit it. --reward_weights gives each its weight.
REWARDS = [exact_answer, well_formed]


def main(
    model_args: ModelConfig,
    data_args: DataArgs,
    online_args: online.OnlineArgs,
    training_args: GRPOConfig,
) -> dict[str, float]:
    """Train on rewards that can be checked, evaluate and save; return the metrics."""
    settings = (model_args, data_args, online_args, training_args)
    with Run.start(__file__, training_args.output_dir, *settings) as run:
        # prompts, policy and rewards that check
        parts = online.load_parts(run, *settings, rewards=REWARDS)

        # trainer: an answer is compared with its group, in standard deviations of the group, and
        # the KL to the start is part of the loss
        trainer = online.group_trainer(run, parts, training_args, push_checkpoints(training_args))
        watch_change(run, online_args, trainer, parts.held_out, judge=parts.judge)

        # train, save and evaluate
        return run.finish(online.train_and_evaluate(run, trainer, parts), trainer)


if __name__ == "__main__":
    command_line(main)
