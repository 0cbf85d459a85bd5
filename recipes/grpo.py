"""Train a model with GRPO on rewards that can be checked, such as right answers.

    accelerate launch recipes/grpo.py --config recipes/grpo.yaml --learning_rate 1e-6
    hfstack run grpo --learning_rate 1e-6                               # the same, shorter

The advantage of an answer is its reward minus the mean of the group of answers to its prompt, in
standard deviations of that group (Shao et al. 2024, arXiv:2402.03300). The KL to the starting
model, times --kl_coef, is part of the loss. The trainer is that of ppo without its critic.

reads   rows with a column `prompt` and what the rewards below read (`answer`); a model; or a
        reward model or endpoint
writes  the model (with LoRA its adapter), its tokenizer, checkpoints, samples and run.json in
        --output_dir
"""

import re
from functools import partial
from typing import Any

from trl import ModelConfig

from hfstack.config import command_line
from hfstack.data.sources import DataArgs
from hfstack.models.adapters import new_adapter
from hfstack.models.loading import load_causal_lm
from hfstack.publishing.checkpoint_push import push_checkpoints
from hfstack.runs.run import Run
from hfstack.tasks.rewards.prepare import reward_folders
from hfstack.tasks.rl.metrics import StopWithoutSpread, evaluate_policy
from hfstack.tasks.rl.online import (
    OnlineArgs,
    load_recorded_prompts,
    load_recorded_tokenizer,
    load_rewards,
)
from hfstack.tasks.rl.ppo.group_config import GRPOConfig
from hfstack.tasks.rl.ppo.trainer import PPOTrainer
from hfstack.tasks.rl.prompts import prompt_problems
from hfstack.tokens.chat import extract_text
from hfstack.training.callbacks import SampleTable
from hfstack.training.checkpointing import protect
from hfstack.training.preflight import checked
from hfstack.training.saving import save_trained

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def exact_answer(
    prompts: list[Any], completions: list[Any], answer: list[str], **columns: Any
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


def last_number(text: str) -> float | None:
    """Return the last number of a text; thousands may be separated by commas."""
    found = NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


# Used when no --reward_model is given; edit it. --reward_weights gives each its weight.
REWARDS = [exact_answer, well_formed]
SHOWN = 8  # prompts whose answers are kept at each evaluation


def main(
    model_args: ModelConfig, data_args: DataArgs, online_args: OnlineArgs, training_args: GRPOConfig
) -> dict[str, float]:
    """Train on rewards that can be checked, evaluate and save; return the metrics."""
    settings = (model_args, data_args, online_args, training_args)
    with Run.start(__file__, training_args.output_dir, *settings) as run:
        # data
        checkpoint = run.resume_point()
        splits = load_recorded_prompts(run, model_args, data_args, online_args)

        # model
        tokenizer = load_recorded_tokenizer(run, splits, model_args)
        model = load_causal_lm(model_args, tokenizer)
        problems = prompt_problems(
            splits,
            tokenizer,
            model,
            max_completion_length=training_args.max_completion_length,
            max_prompt_length=training_args.max_prompt_length,
        )

        # rewards
        run.record_inputs(*reward_folders(REWARDS))
        rewards = load_rewards(
            online_args,
            REWARDS,
            tokenizer,
            device=training_args.device,
            weights=training_args.reward_weights,
        )

        # trainer: the reference is made from the policy
        run.add_artifact("samples", "samples.jsonl")
        samples = SampleTable(
            run.output_dir / "samples.jsonl", lambda model: trainer.samples(SHOWN)
        )
        trainer = PPOTrainer(
            model=model,
            args=training_args,
            reward_funcs=rewards,
            train_dataset=splits["train"],
            eval_dataset=splits.get("eval"),
            processing_class=tokenizer,
            callbacks=[
                samples,
                StopWithoutSpread(),
                *protect(run, push_checkpoints(training_args)),
            ],
            peft_config=new_adapter(model_args, model),
        )
        checked(trainer, tokenizer, problems).train(resume_from_checkpoint=checkpoint)
        save_trained(run, trainer, partial(load_causal_lm, tokenizer=tokenizer))

        # evaluate
        return run.finish(evaluate_policy(trainer), trainer)


if __name__ == "__main__":
    command_line(main)
