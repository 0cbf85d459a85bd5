"""Train by PPO, RLOO, GRPO or REINFORCE on transformers.Trainer.

One epoch of Trainer is one rollout. Trainer's loop is used as it is: the data loader generates
completions and splits them into minibatches, so optimizer, schedule, accumulation, clipping,
callbacks, logs, checkpoints and resuming are Trainer's own.

    RolloutLoader.__iter__        an epoch of Trainer begins
      Collector.collect           prompts -> completions -> scores, log-probabilities, values
                                  -> advantages, and returns for a critic
      training_step ...           num_ppo_epochs * num_mini_batches optimizer steps, each on other
                                  rows of the rollout

Legend: E rows of a rollout on this process, n scored tokens of a chunk, M metrics of an update.
"""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from hfstack.errors import ConfigError
from hfstack.models.evaluation_mode import evaluation_mode
from hfstack.tasks.rewards.prepare import Reward, prepare_rewards
from hfstack.tasks.rl.ppo import length as ppo_length
from hfstack.tasks.rl.ppo import setup as ppo_setup
from hfstack.tasks.rl.ppo.actor_critic import ActorCritic
from hfstack.tasks.rl.ppo.ahead import Generated, RolloutAhead
from hfstack.tasks.rl.ppo.batching import equalize_passes
from hfstack.tasks.rl.ppo.callbacks import CompletionLog, RolloutBoundary
from hfstack.tasks.rl.ppo.checkpointed import CheckpointedTrainer
from hfstack.tasks.rl.ppo.collect import (
    CollectedRollout,
    Episodes,
    RolloutLoader,
    choose_rollout_rows,
)
from hfstack.tasks.rl.ppo.config import PPOConfig
from hfstack.tasks.rl.ppo.engines.interface import RolloutEngine
from hfstack.tasks.rl.ppo.experience import Chunk, Experience, RewardHistory
from hfstack.tasks.rl.ppo.formulas import next_kl_coefficient
from hfstack.tasks.rl.ppo.gradients import clip_apart, drop_policy_gradients
from hfstack.tasks.rl.ppo.loss import POLICY_METRICS, ppo_loss, update_metric_names
from hfstack.tasks.rl.ppo.processes import random_numbers
from hfstack.tasks.rl.ppo.reward_scores import TokenReward
from hfstack.tasks.rl.ppo.update_metrics import TrainingMetrics


class PPOTrainer(CheckpointedTrainer):
    """Trains a causal language model to earn rewards by PPO or what `advantage` names.

    With clipped updates, a KL to the starting model, and for GAE a critic.

    Args:
        model: the policy, a causal language model, or a PEFT model whose adapter is trained
            further.
        args: the settings.
        reward_funcs: functions `(prompts, completions, **columns)`, RewardModel and RemoteReward
            objects, paths, URLs.
        train_dataset: rows with a column `prompt`, texts or conversations; other columns reach the
            rewards.
        processing_class: the policy's tokenizer.
        eval_dataset: held-out prompts.
        token_rewards: functions like rewards that return a list of numbers, one a token, for each
            completion.
        peft_config: of an adapter to add to the model.
        reference_model: what the KL is measured to; None for the policy as it is now.
        engine: generates completions; None for the one that `rollout_engine` names.
        callbacks: as for Trainer.
        optimizers: as for Trainer.

    Raises:
        ConfigError, DataError, CheckpointError: the model cannot generate or end, or settings, rows
            and models do not fit.
    """

    loss_is_scaled_for_ga = True  # the loss below is divided by the tokens of the whole minibatch

    def __init__(
        self,
        *,
        model: PreTrainedModel | PeftModel,
        args: PPOConfig,
        reward_funcs: Reward | str | Sequence[Reward | str],
        train_dataset: Any,
        processing_class: PreTrainedTokenizerBase,
        eval_dataset: Any = None,
        token_rewards: Sequence[TokenReward] = (),
        peft_config: PeftConfig | None = None,
        reference_model: PreTrainedModel | None = None,
        engine: RolloutEngine | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        # prompts and rewards
        train_dataset = ppo_length.check_prompt_rows(train_dataset, needed=1)
        if eval_dataset is not None:
            ppo_length.check_prompt_rows(eval_dataset, needed=1)
        several = isinstance(reward_funcs, Sequence) and not isinstance(reward_funcs, str)
        rewards = prepare_rewards(
            cast(Any, reward_funcs if several else [reward_funcs]),
            device=args.device,
            policy_tokenizer=processing_class,
            weights=args.reward_weights,
        )
        ppo_length.check_best_checkpoint(args, rewards, token_rewards)

        # policy, critic and reference
        actor_critic = ppo_setup.build_actor_critic(
            model, args, processing_class, peft_config=peft_config
        )
        reference = ppo_setup.build_reference(actor_critic, args, reference_model)
        stops = ppo_setup.choose_stop_token_ids(actor_critic, args, processing_class)

        # Trainer
        ppo_length.set_training_length(args, len(train_dataset))
        super().__init__(
            model=actor_critic,
            args=args,
            data_collator=cast(Any, list),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )

        # state of PPO: what a checkpoint keeps, then what a log or a rollout resets
        self.collector = ppo_setup.build_collector(
            actor_critic,
            args,
            processing_class,
            self.accelerator,
            rewards=rewards,
            token_rewards=token_rewards,
            reference=reference,
            engine=engine,
            stops=stops,
        )
        self.kl_coef = args.kl_coef
        self.reward_history = RewardHistory()

        names = update_metric_names(has_critic=actor_critic.has_critic)
        self.training_metrics = TrainingMetrics(names, args.device)
        self._step_kl = torch.zeros((), device=args.device)  # of this step, on this process
        self._last_evaluation: tuple[int, Episodes] | None = None
        self._ahead = RolloutAhead(self._generate_ahead) if args.rollouts_ahead else None
        self._decodes_sharded = False

        log_file = Path(str(args.output_dir)) / "completions.jsonl"
        self._completions = CompletionLog(log_file, args.log_completions)
        self._boundary = RolloutBoundary()
        self.add_callback(self._completions)
        self.add_callback(self._boundary)

        # Trainer seeds all processes alike, so all would generate the same completions.
        if self.accelerator.num_processes > 1:
            torch.manual_seed(args.seed + self.accelerator.process_index)

    def get_train_dataloader(self) -> Any:
        """Return the loader that collects a rollout for each epoch."""
        return RolloutLoader(
            self.args,
            self.train_dataset,
            collect=self.collect_training_rollout,
            reduce=self.collector.reduce,
            process_index=self.accelerator.process_index,
        )

    def collect_training_rollout(self, index: int) -> Experience:
        """Collect and score rollout `index`, adapt the KL coefficient, keep the metrics."""
        args, dataset = self.args, cast(Any, self.train_dataset)
        rank, episodes = self.accelerator.process_index, args.rollout_size * args.world_size
        rows = choose_rollout_rows(args, index, len(dataset), process_index=rank)
        generated = None if self._ahead is None else self._ahead.take(index)
        collected = self._collect(dataset[rows], index, generated=generated)
        if self._ahead is not None and (index + 1) * args.steps_per_rollout < args.max_steps:
            self._ahead.start(self.unwrapped(), index + 1)

        if args.log_completions and self.is_world_process_zero():
            shown = collected.episodes
            self._completions.append(
                self.state.global_step, shown.prompts, shown.completions, shown.rewards
            )

        counted = {"episodes": (index + 1) * episodes}
        self.training_metrics.add_rollout(collected.metrics | collected.seconds | counted)
        self.kl_coef = next_kl_coefficient(
            self.kl_coef,
            collected.metrics.get("kl_per_completion", 0.0),
            target=args.kl_target,
            horizon=args.kl_horizon,
            episodes=episodes,
        )

        return collected.experience

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Run forward and backward on one batch, in chunks of similar lengths.

        Return the batch's share of the loss.
        """
        began = time.perf_counter()
        model.train()
        experience: Experience = inputs["experience"]
        warms_up = experience.rollout < self.args.critic_warmup_rollouts

        own_chunks = experience.sequences.chunks(
            inputs["rows"], self.args.device.type, max_tokens=self.args.max_tokens_per_microbatch
        )
        chunks = equalize_passes(own_chunks, self.collector.max_over_processes)

        total = torch.zeros((), device=self.args.device)
        for number, rows in enumerate(chunks):
            chunk = experience.select(rows)
            # Repeated only so that every process makes as many passes: it must not count.
            if number >= len(own_chunks):
                chunk.set_weights_to_zero()

            # Gradients are averaged over processes once, in the last pass.
            is_last = number + 1 == len(chunks)
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(model):
                with self.compute_loss_context_manager():
                    loss = self.compute_loss(
                        model, {**inputs, "chunk": chunk, "warms_up": warms_up}
                    )
                self.accelerator.backward(loss)

            total += loss.detach()

        if self.accelerator.sync_gradients:
            self._end_of_gradients(warms_up)
        self.training_metrics.add_seconds(time.perf_counter() - began)
        return total

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss of one chunk, divided by the tokens of the whole minibatch.

        Each token weighs the same, whatever chunk, accumulation step or process it is in. The loss
        is multiplied by the number of processes, over which gradients are averaged.
        """
        args, chunk = self.args, cast(Chunk, inputs["chunk"])
        wanted = ("log_probs", "values", "entropies")
        if not args.entropy_coef:
            wanted = wanted[:2]

        outputs = model(
            *chunk.batch,
            wanted=wanted,
            temperature=args.temperature,
            detach_value=inputs["warms_up"],
        )

        loss, sums = ppo_loss(
            args,
            outputs,
            chunk.fields,
            tokens=inputs["tokens"],
            denominator=inputs["denominator"],
            # the trainer's own is that of the next rollout already
            kl_coef=cast(Experience, inputs["experience"]).kl_coef,
            critic_only=inputs["warms_up"],
        )  # scalar, (M,)

        self.training_metrics.add_chunk(sums)
        self._step_kl += sums[POLICY_METRICS.index("policy/approx_kl")]
        loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Give the critic its own learning rate, and leave the rest to Trainer."""
        trained = cast(nn.Module, self.model if model is None else model)
        if self.optimizer is None:
            optimizer_class, kwargs = self.get_optimizer_cls_and_kwargs(
                self.args, cast(Any, trained)
            )
            groups = ppo_setup.parameter_groups(
                trained,
                self.args,
                decayed=set(self.get_decay_parameter_names(trained)),
                shared=self.unwrapped().critic_kind == "shared",
            )
            self.optimizer_cls_and_kwargs = (optimizer_class, {**kwargs, "params": groups})

        return super().create_optimizer(cast(Any, model))

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> Any:
        """Begin the policy's schedule when the critic alone has been warmed up."""
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        ppo_setup.delay_policy_schedule(
            scheduler, self.args, cast(nn.Module, self.model), steps=num_training_steps
        )
        return scheduler

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        """Clip the gradients of policy and critic apart."""
        return clip_apart(cast(nn.Module, self.model), self.accelerator, self.args.max_grad_norm)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Generate completions for each held-out prompt, and return the metrics.

        They are rewards, KL, lengths and the rest of a rollout. Every evaluation uses the same
        random numbers, and leaves those of training as they were.
        """
        dataset = cast(Any, self.eval_dataset if eval_dataset is None else eval_dataset)
        if dataset is None:
            raise ConfigError(
                "there are no held-out prompts to evaluate on: give --eval_datasets or "
                "--eval_fraction"
            )

        # As many rows on each process: the last ones may be repeated ones of weight 0. The
        # completions of a prompt are side by side, as in training.
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        count = -(-len(dataset) // processes)
        places = torch.arange(count) * processes + rank  # (count,)
        places = places.repeat_interleave(self.args.num_generations_eval)
        rows = dataset[(places % len(dataset)).tolist()]

        with self._own_random_numbers():
            collected = self._collect(
                rows,
                0,
                row_weights=(places < len(dataset)).float(),
                at_once=self.args.per_device_eval_batch_size,
            )

        self._last_evaluation = (self.state.global_step, collected.episodes)
        metrics = {
            f"{metric_key_prefix}_{name}": value for name, value in collected.metrics.items()
        }
        self.log(dict(metrics))

        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, cast(Any, metrics)
        )
        return metrics

    def samples(self, count: int) -> list[tuple[str, str]]:
        """Return prompts with completions of the current policy.

        Those of the last evaluation when no step was taken since; otherwise they are generated,
        with the same random numbers every time.
        """
        if self._last_evaluation is not None and self._last_evaluation[0] == self.state.global_step:
            episodes = self._last_evaluation[1]
            prompts, completions = episodes.prompts[:count], episodes.completions[:count]
        else:  # by this process alone, which may be the only one that asks
            dataset = self.train_dataset if self.eval_dataset is None else self.eval_dataset
            prompts = cast(Any, dataset)[:count]["prompt"]
            policy = cast(ActorCritic, self.model)
            with self._own_random_numbers(), evaluation_mode(policy):
                prompt_ids, rollout = self.collector.generate(policy, prompts)
            completions = self.collector.decode(prompts, prompt_ids, rollout)

        shown = [
            prompt if isinstance(prompt, str) else str(prompt[-1]["content"]) for prompt in prompts
        ]
        return list(zip(shown, completions, strict=True))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the metrics of rollouts and updates since the last log to training logs."""
        if "loss" in logs and self.training_metrics.updates:
            skipped = self._boundary.pop_skipped_steps()
            logs |= self.training_metrics.pop(self.collector.reduce, skipped_updates=skipped)

        super().log(logs, start_time)

    def _load_best_model(self) -> None:
        """Load the best checkpoint; what the last evaluation showed is not of it."""
        super()._load_best_model()
        self._last_evaluation = None

    def _generate_ahead(self, policy: ActorCritic, index: int) -> Generated:
        """Generate the completions of a rollout, with random numbers of its own."""
        dataset, rank = cast(Any, self.train_dataset), self.accelerator.process_index
        rows = choose_rollout_rows(self.args, index, len(dataset), process_index=rank)
        seed = self.args.seed * 1_000_003 + index * 7919 + rank
        engine = self.collector.engine_with_seed(seed)
        return self.collector.generate(policy, dataset[rows]["prompt"], engine=engine)

    def _own_random_numbers(self) -> contextlib.AbstractContextManager[None]:
        return random_numbers(self.args.seed + self.accelerator.process_index, self.args.device)

    def _end_of_gradients(self, warms_up: bool) -> None:
        """Finish the gradients of an optimizer step: warm-up, and the stop by `target_kl`."""
        if warms_up:
            drop_policy_gradients(cast(nn.Module, self.model))

        # Too far already: this step, which would lead further, is not taken either.
        target = self.args.target_kl
        is_far = target is not None and float(self.collector.reduce(self._step_kl)) > target
        if is_far:
            cast(nn.Module, self.model).zero_grad(set_to_none=True)
            self.control.should_epoch_stop = True
        self.training_metrics.add_update(taken=not is_far)
        self._step_kl.zero_()

    def _collect(
        self,
        columns: Any,
        index: int,
        *,
        row_weights: Tensor | None = None,
        at_once: int | None = None,
        generated: Generated | None = None,
    ) -> CollectedRollout:
        # Only after Trainer has sharded the model can its decoding be registered.
        if isinstance(self.model, FSDPModule) and not self._decodes_sharded:
            register_fsdp_forward_method(cast(nn.Module, self.model), "decode_step")
            self._decodes_sharded = True

        return self.collector.collect(
            cast(ActorCritic, self.model),
            columns,
            kl_coef=self.kl_coef,
            history=self.reward_history,
            index=index,
            row_weights=row_weights,
            at_once=at_once,
            trainer_state=self.state,
            generated=generated,
        )
