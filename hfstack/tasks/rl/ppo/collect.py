"""Collect a rollout: encode prompts, generate, score, and build the experience."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hfstack.errors import DataError
from hfstack.models.context import context_length
from hfstack.tasks.rewards.prepare import Scores, reward_name, score_all
from hfstack.tasks.rl.ppo.actor_critic import ActorCritic
from hfstack.tasks.rl.ppo.batching import Sequences, score_completions
from hfstack.tasks.rl.ppo.config import PPOConfig
from hfstack.tasks.rl.ppo.engines.interface import Rollout, RolloutEngine, check_rollout
from hfstack.tasks.rl.ppo.experience import Experience, Judged, pad_rows, shape_experience
from hfstack.tasks.rl.ppo.formulas import Reduce, RunningMoments
from hfstack.tasks.rl.prompts import cut_prompt, encode_prompt

TokenReward = Callable[..., Sequence[Sequence[float]]]


@dataclass
class Episodes:
    """The texts of a rollout and what they earned."""

    prompts: list[Any]  # texts or conversations
    completions: list[str]
    rewards: list[float | None]


@dataclass
class Collected:
    """A rollout of this process."""

    experience: Experience
    metrics: dict[str, float]  # over all processes
    episodes: Episodes
    seconds: dict[str, float]  # by phase, of this process


class Collector:
    """Everything beside the policy that a rollout needs.

    `engine`, which writes the completions, is set afterwards.

    Args:
        args: the settings.
        tokenizer: the policy's.
        accelerator: for the device, mixed precision and sums over processes.
        rewards: prepared reward functions.
        token_rewards: functions that return a number for each token of each completion.
        reference: the frozen reference; None when the policy holds it, or there is no KL.
        pad_token_id: fills up on the right, where nothing reads it.
        sharded: each forward pass needs all processes.
    """

    def __init__(
        self,
        args: PPOConfig,
        tokenizer: PreTrainedTokenizerBase,
        accelerator: Accelerator,
        *,
        rewards: Sequence[Any],
        token_rewards: Sequence[TokenReward],
        reference: ActorCritic | None,
        pad_token_id: int,
        sharded: bool,
    ) -> None:
        self.args = args
        self.tokenizer = tokenizer
        self.accelerator = accelerator
        self.engine: RolloutEngine
        self.rewards = rewards

        self.token_rewards = token_rewards
        self.reference = reference
        self.pad_token_id = pad_token_id
        self.largest = self.largest_over_processes if sharded else None
        default_cap = 2.0 if args.rollout_engine == "vllm" else None
        self.tis_cap = args.tis_cap if args.tis_cap is not None else default_cap

        self._thread = ThreadPoolExecutor(max_workers=1)

    def collect(
        self,
        actor_critic: ActorCritic,
        columns: Mapping[str, list[Any]],
        *,
        kl_coef: float,
        moments: RunningMoments,
        index: int,
        row_weights: Tensor | None = None,
        trainer_state: Any = None,
    ) -> Collected:
        """Write completions to the prompts in `columns` and make what PPO learns from.

        Rewards are computed in a thread while the models score the completions, so a remote reward
        costs no time.

        Raises:
            DataError: a prompt does not fit the context, or a reward or the engine returns what it
                must not.
        """
        began = time.perf_counter()
        training = actor_critic.training
        actor_critic.eval()

        with torch.no_grad(), self.accelerator.autocast():
            prompts = columns["prompt"]
            prompt_ids, rollout = self.write(actor_critic, prompts)
            generated = time.perf_counter()
            texts = self.decode(rollout)
            pending = self._thread.submit(self._score_texts, columns, texts, rollout, trainer_state)
            sequences = Sequences.join(prompt_ids, rollout.completion_ids, self.pad_token_id)
            tables = self._judge(actor_critic, sequences, rollout)
            scores, token_rewards = pending.result()

        actor_critic.train(training)
        judged = Judged(scores, token_rewards, **tables)
        experience, metrics = shape_experience(
            self.args,
            sequences,
            rollout,
            judged,
            kl_coef=kl_coef,
            moments=moments,
            index=index,
            tis_cap=self.tis_cap,
            row_weights=row_weights,
            reduce=self.reduce,
        )

        seconds = {
            "time/generate_s": generated - began,
            "time/score_s": time.perf_counter() - generated,
        }

        return Collected(
            experience, metrics, Episodes(list(prompts), texts, scores.totals), seconds
        )

    def write(
        self, actor_critic: ActorCritic, prompts: Sequence[Any]
    ) -> tuple[list[list[int]], Rollout]:
        """Write one completion to each prompt.

        No other process is needed unless the weights are sharded.
        """
        with torch.no_grad(), self.accelerator.autocast():
            prompt_ids = self.encode(prompts, actor_critic)
            rollout = self.engine.generate(actor_critic, prompt_ids)
        check_rollout(rollout, prompts)
        return prompt_ids, rollout

    def encode(self, prompts: Sequence[Any], actor_critic: ActorCritic) -> list[list[int]]:
        """The tokens of the prompts; a conversation goes through the chat template.

        Raises DataError for a prompt that leaves no room for a completion in the context, or has no
        tokens at all."""
        if all(isinstance(prompt, str) for prompt in prompts):
            encoded = cast(list[list[int]], self.tokenizer(list(prompts))["input_ids"])
        else:
            encoded = [encode_prompt(prompt, self.tokenizer) for prompt in prompts]

        bos, longest = self.tokenizer.bos_token_id, self.args.max_prompt_length
        encoded = [cut_prompt(token_ids, longest, bos) for token_ids in encoded]
        limit = context_length(actor_critic.config.get_text_config())

        for prompt, token_ids in zip(prompts, encoded, strict=True):
            needed = len(token_ids) + self.args.max_completion_length
            if limit is not None and needed > limit:
                raise DataError(
                    f"a prompt of {len(token_ids)} tokens and --max_completion_length "
                    f"{self.args.max_completion_length} do not fit the context of {limit} tokens: "
                    "set "
                    f"--max_prompt_length, or drop the prompt {str(prompt)[:60]!r}"
                )

            if not token_ids:
                raise DataError(
                    f"the prompt {str(prompt)[:60]!r} has no tokens: drop it, or give the "
                    "tokenizer a bos"
                )

        return encoded

    def decode(self, rollout: Rollout) -> list[str]:
        """The texts of the completions, without special tokens."""
        token_ids = [completion.tolist() for completion in rollout.completion_ids]
        return cast(list[str], self.tokenizer.batch_decode(token_ids, skip_special_tokens=True))

    def reduce(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        if self.accelerator.num_processes == 1:
            return tensor
        return cast(
            Tensor, self.accelerator.reduce(tensor.to(self.accelerator.device), reduction="sum")
        )

    def largest_over_processes(self, number: int) -> int:
        """The largest of a number over all processes."""
        if self.accelerator.num_processes == 1:
            return number
        gathered = self.accelerator.gather(torch.tensor([number], device=self.accelerator.device))
        return int(cast(Tensor, gathered).max())

    def _judge(
        self, actor_critic: ActorCritic, sequences: Sequences, rollout: Rollout
    ) -> dict[str, Any]:
        """Return old log-probabilities, values, and the reference's, (N, T) each.

        From the engine where they are exact.
        """
        device, temperature = actor_critic.device, self.args.temperature
        reuses = rollout.log_probs is not None and self._trusts_sampler(actor_critic)
        needs_values = rollout.values is None or not reuses
        wanted = (*(() if reuses else ("log_probs",)), *(("values",) if needs_values else ()))

        limits = {
            "device": device,
            "max_tokens": self.args.max_tokens_per_microbatch,
            "equal_passes": self.largest,
        }

        def score(
            model: ActorCritic, names: tuple[str, ...], *, reference: bool = False
        ) -> dict[str, Tensor]:
            return score_completions(
                lambda batch: model(
                    *batch, wanted=names, temperature=temperature, reference=reference
                ),
                sequences,
                **limits,
            )

        found = score(actor_critic, wanted) if wanted else {}
        sampler = None if rollout.log_probs is None else pad_rows(rollout.log_probs, device)
        reference = None

        if self.reference is not None:
            reference = score(self.reference, ("log_probs",))["log_probs"]
        elif self.args.kl_coef > 0:
            reference = score(actor_critic, ("log_probs",), reference=True)["log_probs"]

        values = (
            found["values"]
            if needs_values
            else pad_rows(cast(list[Tensor], rollout.values), device)
        )

        return {
            "old_log_probs": cast(Tensor, sampler) if reuses else found["log_probs"],
            "values": values,
            "reference_log_probs": reference,
            "sampler_log_probs": None if reuses else sampler,
        }

    def _trusts_sampler(self, actor_critic: ActorCritic) -> bool:
        """Return whether the sampler's log-probabilities serve as the old policy's.

        As asked, or by the dtype.
        """
        if self.args.old_logprobs != "auto":
            return self.args.old_logprobs == "rollout"
        full_precision = (
            actor_critic.dtype == torch.float32 and self.accelerator.mixed_precision == "no"
        )
        return self.engine.exact_log_probs and full_precision

    def _score_texts(
        self,
        columns: Mapping[str, list[Any]],
        texts: list[str],
        rollout: Rollout,
        trainer_state: Any,
    ) -> tuple[Scores, Tensor | None]:
        """Call the rewards; raises DataError when none applies to a completion."""
        prompts = columns["prompt"]
        completions = [
            text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            for prompt, text in zip(prompts, texts, strict=True)
        ]

        given = {
            name: column
            for name, column in columns.items()
            if name not in ("prompt", "prompts", "completions")
        }

        given["completion_ids"] = [completion.tolist() for completion in rollout.completion_ids]
        given["trainer_state"] = trainer_state

        scores = score_all(
            self.rewards, prompts, completions, weights=self.args.reward_weights, columns=given
        )
        if not self.token_rewards and None in scores.totals:
            row = scores.totals.index(None)
            raise DataError(
                "no reward applies to a completion: every one returned None for prompt "
                f"{str(prompts[row])[:60]!r}, "
                f"completion {texts[row][:60]!r}"
            )

        return scores, self._score_tokens(prompts, completions, given, scores)

    def _score_tokens(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        columns: dict[str, Any],
        scores: Scores,
    ) -> Tensor | None:
        """The sum of all token rewards, (N, T), each logged by its sum over a completion."""
        total: Tensor | None = None
        lengths = [len(completion) for completion in columns["completion_ids"]]

        for reward in self.token_rewards:
            name = reward_name(reward)
            rows = [torch.as_tensor(row).float() for row in reward(prompts, completions, **columns)]
            if [len(row) for row in rows] != lengths:
                raise DataError(
                    f"token reward {name!r} must return one number for each token of each "
                    "completion"
                )

            table = pad_rows(rows, self.accelerator.device)
            if not table.isfinite().all():
                row = int((~table.isfinite()).any(dim=1).nonzero()[0])
                raise DataError(
                    f"token reward {name!r} returned NaN or infinity for prompt "
                    f"{str(prompts[row])[:60]!r}"
                )

            scores.each[name] = table.sum(dim=1).tolist()
            total = table if total is None else total + table

        return total


def prompt_rows(first: int, count: int, size: int, *, seed: int) -> list[int]:
    """Return places `first` to `first + count` of endless seeded permutations."""
    rows: list[int] = []
    for passed in range(first // size, (first + count - 1) // size + 1):
        order = torch.randperm(
            size, generator=torch.Generator().manual_seed(seed + 10_007 * passed)
        )
        rows += order[max(first - passed * size, 0) : first + count - passed * size].tolist()
    return rows


class RolloutLoader:
    """One rollout for each iteration; the state is its index.

    It is not prepared by accelerate, whose loaders fetch one batch ahead: the next rollout would be
    written before the last update of this one.

    Args:
        args: the settings.
        dataset: the prompts; Trainer reads their number.
        collect: writes and scores the rollout of an index.
        reduce: sums over processes.
        process_index: part of the seed, so that processes shuffle apart.
    """

    def __init__(
        self,
        args: PPOConfig,
        dataset: Any,
        *,
        collect: Callable[[int], Experience],
        reduce: Reduce,
        process_index: int,
    ) -> None:
        self.args = args
        self.dataset = dataset
        self.rollout = 0
        self._collect = collect
        self._reduce = reduce
        self._process_index = process_index

    def set_epoch(self, epoch: int) -> None:
        """Trainer's epoch is the index of the rollout."""
        self.rollout = epoch

    def __len__(self) -> int:
        """Batches of a rollout: optimizer steps times accumulation."""
        return self.args.steps_per_rollout * self.args.gradient_accumulation_steps

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield what `PPOTrainer.training_step` takes for each batch.

        The experience, the rows of the batch, and its minibatch's tokens.
        """
        args = self.args
        experience = self._collect(self.rollout)
        seed = args.seed * 1_000_003 + self.rollout * 7919 + self._process_index
        generator = torch.Generator().manual_seed(seed)
        orders = [
            torch.randperm(args.rollout_size, generator=generator)
            for _ in range(args.num_ppo_epochs)
        ]

        # (steps, episodes of a step)
        minibatches = torch.stack(orders).view(args.steps_per_rollout, -1)
        tokens = self._reduce(experience.token_counts[minibatches].sum(1).double())
        for rows, total in zip(minibatches.tolist(), tokens.tolist(), strict=True):
            for first in range(0, len(rows), args.per_device_train_batch_size):
                chosen = rows[first : first + args.per_device_train_batch_size]
                yield {"experience": experience, "rows": chosen, "tokens": max(total, 1.0)}
