"""Collect a rollout: encode prompts, generate, score, and build the experience.

Legend: N prompts of this process, T tokens of the longest completion, E rows of a rollout.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hfstack.errors import DataError
from hfstack.logs import get_logger
from hfstack.models.context import context_length
from hfstack.tasks.rewards.prepare import Scores, is_remote
from hfstack.tasks.rl.ppo.actor_critic import ActorCritic, TokenScores
from hfstack.tasks.rl.ppo.ahead import Generated
from hfstack.tasks.rl.ppo.batching import Sequences, TokenBatch, score_completions
from hfstack.tasks.rl.ppo.config import PPOConfig
from hfstack.tasks.rl.ppo.engines.interface import (
    Rollout,
    RolloutEngine,
    check_rollout,
    join_rollouts,
)
from hfstack.tasks.rl.ppo.engines.native import NativeEngine
from hfstack.tasks.rl.ppo.experience import (
    Experience,
    RewardHistory,
    RolloutScores,
    pad_right,
    shape_experience,
)
from hfstack.tasks.rl.ppo.formulas import Reduce
from hfstack.tasks.rl.ppo.processes import sum_over_processes
from hfstack.tasks.rl.ppo.reward_scores import TokenReward, start_scoring
from hfstack.tasks.rl.prompts import decode_completions, tokenize_prompt, truncate_prompt

logger = get_logger(__name__)

_FEW_ENDED = 0.05  # below this share of completions that end by themselves, warn

# logged once each
_NO_SIGNAL = (
    "every answer so far got the same score, %g: the policy stays as it is until they differ; "
    "check that the reward fits these prompts (logged once)"
)
_HARDLY_ANY_ENDS = (
    "%.0f %% of the completions end by themselves; the others are truncated at "
    "--max_completion_length: allow longer ones, or train the model to stop first (logged once)"
)


@dataclass
class Episodes:
    """The texts of a rollout and their rewards."""

    prompts: list[Any]  # texts or conversations
    completions: list[str]
    rewards: list[float | None]


@dataclass
class CollectedRollout:
    """A rollout of this process."""

    experience: Experience
    metrics: dict[str, float]  # over all processes
    episodes: Episodes
    seconds: dict[str, float]  # by phase, of this process


class Collector:
    """Generates and scores rollouts: all that a rollout needs beside the policy.

    Args:
        args: the settings.
        tokenizer: the policy's.
        accelerator: for the device, mixed precision and sums over processes.
        engine: generates the completions.
        rewards: prepared reward functions.
        token_rewards: functions that return a number for each token of each completion.
        reference: the frozen reference; None when the policy holds it, or there is no KL.
        pad_token_id: fills up on the right, where nothing attends to it.
        max_over_processes: the largest of a number over all processes, when each forward pass needs
            all of them (sharded weights); None otherwise.
    """

    def __init__(
        self,
        args: PPOConfig,
        tokenizer: PreTrainedTokenizerBase,
        accelerator: Accelerator,
        engine: RolloutEngine,
        *,
        rewards: Sequence[Any],
        token_rewards: Sequence[TokenReward],
        reference: ActorCritic | None,
        pad_token_id: int,
        max_over_processes: Callable[[int], int] | None,
    ) -> None:
        self.args = args
        self.tokenizer = tokenizer
        self.accelerator = accelerator
        self.engine = engine

        self.rewards = rewards
        self.token_rewards = token_rewards
        self.reference = reference
        self.pad_token_id = pad_token_id

        self.reduce: Reduce = partial(sum_over_processes, accelerator)
        self.max_over_processes = max_over_processes
        self._warned: set[str] = set()
        self._pool = ThreadPoolExecutor(max_workers=max(1, sum(map(is_remote, rewards))))

    def collect(
        self,
        actor_critic: ActorCritic,
        columns: Mapping[str, list[Any]],
        *,
        kl_coef: float,
        history: RewardHistory,
        index: int,
        row_weights: Tensor | None = None,
        at_once: int | None = None,
        trainer_state: Any = None,
        generated: Generated | None = None,
    ) -> CollectedRollout:
        """Generate completions for the prompts in `columns` and build the experience.

        Endpoints are asked while the models score the completions, so that waiting for them costs
        no time; other rewards follow in this thread.

        Args:
            actor_critic: with the policy.
            columns: of the prompts' rows.
            kl_coef: current weight of the KL.
            history: of all rewards so far.
            index: of the rollout.
            row_weights: (N,) of an evaluation, as in `shape_experience`; None in training.
            at_once: prompts that the engine is given at a time; None for all.
            trainer_state: passed on to the rewards.
            generated: what `generate` returned for these prompts before; None to generate now.

        Raises:
            DataError: a prompt does not fit the context, or a reward or the engine returns what it
                must not.
        """
        began = time.perf_counter()
        training = actor_critic.training
        actor_critic.eval()

        # completions
        prompts = columns["prompt"]
        prompt_ids, rollout = generated or self.generate(actor_critic, prompts, at_once=at_once)
        scoring = time.perf_counter()
        texts = self.decode(prompts, prompt_ids, rollout)

        # rewards, old log-probabilities and values, the reference's log-probabilities
        finish_rewards = self._start_rewards(columns, texts, rollout, trainer_state)
        sequences = Sequences.join(prompt_ids, rollout.completion_ids, self.pad_token_id)
        scored = self._score_rollout(actor_critic, sequences, rollout, finish_rewards)
        actor_critic.train(training)

        # advantages and returns
        experience, metrics = shape_experience(
            self.args,
            sequences,
            rollout,
            scored,
            kl_coef=kl_coef,
            history=history,
            index=index,
            tis_cap=self.args.importance_cap,
            row_weights=row_weights,
            reduce=self.reduce,
        )

        if row_weights is None and history.gains.spread == 0:
            self._warn_once("spread", _NO_SIGNAL, metrics["reward"])
        if metrics["ended_share"] < _FEW_ENDED:
            self._warn_once("ends", _HARDLY_ANY_ENDS, 100 * metrics["ended_share"])

        seconds = {
            "time/generate_s": scoring - began,
            "time/score_s": time.perf_counter() - scoring,
        }
        episodes = Episodes(list(prompts), texts, scored.rewards.totals)
        return CollectedRollout(experience, metrics, episodes, seconds)

    def generate(
        self,
        actor_critic: ActorCritic,
        prompts: Sequence[Any],
        *,
        at_once: int | None = None,
        engine: RolloutEngine | None = None,
    ) -> Generated:
        """Generate one completion for each prompt; return the prompts' tokens with them.

        No other process is needed unless the weights are sharded.

        Args:
            actor_critic: with the policy.
            prompts: texts or conversations.
            at_once: prompts that the engine is given at a time; None for all.
            engine: another than the collector's own, or None.
        """
        engine = engine or self.engine
        with torch.no_grad(), self.accelerator.autocast():
            prompt_ids = self.encode(prompts, actor_critic)
            size = at_once or len(prompt_ids)
            parts = [
                engine.generate(actor_critic, prompt_ids[first : first + size])
                for first in range(0, len(prompt_ids), size)
            ]

        rollout = join_rollouts(parts)
        check_rollout(rollout, prompts)
        return prompt_ids, rollout

    def engine_with_seed(self, seed: int) -> RolloutEngine:
        """Return an engine like the collector's, with random numbers of its own."""
        assert isinstance(self.engine, NativeEngine)
        generator = torch.Generator(self.accelerator.device).manual_seed(seed)
        return NativeEngine(self.engine.settings, generator=generator)

    def encode(self, prompts: Sequence[Any], actor_critic: ActorCritic) -> list[list[int]]:
        """Return the tokens of the prompts; a conversation goes through the chat template.

        Raises:
            DataError: a prompt leaves no room for a completion in the context, or has no tokens.
        """
        if all(isinstance(prompt, str) for prompt in prompts):
            encoded = cast(list[list[int]], self.tokenizer(list(prompts))["input_ids"])
        else:
            encoded = [tokenize_prompt(prompt, self.tokenizer) for prompt in prompts]

        bos, longest = self.tokenizer.bos_token_id, self.args.max_prompt_length
        encoded = [truncate_prompt(token_ids, longest, bos) for token_ids in encoded]
        limit = context_length(actor_critic.config.get_text_config())

        for prompt, token_ids in zip(prompts, encoded, strict=True):
            needed = len(token_ids) + self.args.max_completion_length
            if limit is not None and needed > limit:
                raise DataError(
                    f"a prompt of {len(token_ids)} tokens and --max_completion_length "
                    f"{self.args.max_completion_length} do not fit the context of {limit} tokens: "
                    f"set --max_prompt_length, or drop the prompt {str(prompt)[:60]!r}"
                )

            if not token_ids:
                raise DataError(
                    f"the prompt {str(prompt)[:60]!r} has no tokens: drop it, or give the "
                    "tokenizer a bos"
                )

        return encoded

    def decode(
        self, prompts: Sequence[Any], prompt_ids: Sequence[Sequence[int]], rollout: Rollout
    ) -> list[str]:
        """Return the texts of the completions, as they stand behind their prompts."""
        return decode_completions(
            self.tokenizer,
            prompts,
            prompt_ids,
            [completion.tolist() for completion in rollout.completion_ids],
        )

    def _score_rollout(
        self,
        actor_critic: ActorCritic,
        sequences: Sequences,
        rollout: Rollout,
        finish_rewards: Callable[[], tuple[Scores, Tensor | None]],
    ) -> RolloutScores:
        """Score completions by the models, then by the rewards that were begun before."""
        with torch.no_grad(), self.accelerator.autocast():
            old, values, sampler = self._policy_scores(actor_critic, sequences, rollout)
            reference = self._reference_log_probs(actor_critic, sequences)

        rewards, token_rewards = finish_rewards()
        return RolloutScores(
            rewards,
            token_rewards,
            old_log_probs=old,
            values=values,
            reference_log_probs=reference,
            sampler_log_probs=sampler,
        )

    def _start_rewards(
        self, columns: Mapping[str, list[Any]], texts: list[str], rollout: Rollout, state: Any
    ) -> Callable[[], tuple[Scores, Tensor | None]]:
        """Ask endpoints, and return what computes the other rewards and gives all."""
        return start_scoring(
            self.rewards,
            self.token_rewards,
            columns,
            texts,
            completion_ids=[completion.tolist() for completion in rollout.completion_ids],
            finished=rollout.finished.tolist(),
            weights=self.args.reward_weights,
            trainer_state=state,
            device=self.accelerator.device,
            pool=self._pool,
        )

    def _warn_once(self, name: str, text: str, number: float) -> None:
        if name not in self._warned:
            self._warned.add(name)
            logger.warning(text, number)

    def _policy_scores(
        self, actor_critic: ActorCritic, sequences: Sequences, rollout: Rollout
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return old log-probabilities, values and the sampler's log-probabilities.

        (N, T) each; no values without a critic. Those of the engine are used where they are exact;
        the sampler's are None where they are the old ones.
        """
        device = actor_critic.device
        sampler = None if rollout.log_probs is None else pad_right(rollout.log_probs, device)

        if sampler is None or not self._uses_sampler_log_probs(actor_critic):
            scores = self._score(actor_critic, sequences, ("log_probs", "values"), device)
            return scores["log_probs"], scores.get("values"), sampler

        if not actor_critic.has_critic:
            return sampler, None, None
        if rollout.values is None:
            values = self._score(actor_critic, sequences, ("values",), device)["values"]
        else:
            values = pad_right(rollout.values, device)
        return sampler, values, None

    def _reference_log_probs(
        self, actor_critic: ActorCritic, sequences: Sequences
    ) -> Tensor | None:
        """Return the reference's log-probabilities, (N, T); None without a KL."""
        device, names = actor_critic.device, ("log_probs",)
        if self.reference is not None:
            return self._score(self.reference, sequences, names, device)["log_probs"]

        if self.args.kl_coef > 0:
            scores = self._score(actor_critic, sequences, names, device, reference=True)
            return scores["log_probs"]

        return None

    def _score(
        self,
        model: ActorCritic,
        sequences: Sequences,
        wanted: tuple[str, ...],
        device: torch.device,
        *,
        reference: bool = False,
    ) -> dict[str, Tensor]:
        """Return what a model computes for all completions, (N, T) by name."""

        def score_batch(batch: TokenBatch) -> TokenScores:
            return model(
                *batch, wanted=wanted, temperature=self.args.temperature, reference=reference
            )

        return score_completions(
            score_batch,
            sequences,
            device=device,
            max_tokens=self.args.max_tokens_per_microbatch,
            max_over_processes=self.max_over_processes,
        )

    def _uses_sampler_log_probs(self, actor_critic: ActorCritic) -> bool:
        """Return whether the sampler's log-probabilities are used as the old policy's.

        As `old_logprobs` says; "auto" uses them where they are exact in fp32.
        """
        if self.args.old_logprobs != "auto":
            return self.args.old_logprobs == "rollout"

        if self.args.rollouts_ahead:
            return False
        is_fp32 = actor_critic.dtype == torch.float32 and self.accelerator.mixed_precision == "no"
        return self.engine.exact_log_probs and is_fp32


def choose_prompt_rows(first: int, count: int, size: int, *, seed: int) -> list[int]:
    """Return rows `first` to `first + count` of an endless shuffle of `size` prompts.

    The shuffle is a seeded permutation of all prompts, then another one, and so on.
    """
    rows: list[int] = []
    for passed in range(first // size, (first + count - 1) // size + 1):
        generator = torch.Generator().manual_seed(seed + 10_007 * passed)
        order = torch.randperm(size, generator=generator)  # (size,)
        rows += order[max(first - passed * size, 0) : first + count - passed * size].tolist()
    return rows


def choose_rollout_rows(args: PPOConfig, index: int, size: int, *, process_index: int) -> list[int]:
    """Return the rows of rollout `index` on a process, of `size` prompts.

    Each is there `num_generations` times in a row, so that a group is on one process. Which they
    are depends on seed, index and process alone, so a resumed run needs no state of a sampler.
    """
    count = args.rollout_size // args.num_generations
    first = (index * args.world_size + process_index) * count
    rows = choose_prompt_rows(first, count, size, seed=args.prompt_seed)
    return [row for row in rows for _ in range(args.num_generations)]


class RolloutLoader:
    """A data loader whose iteration collects one rollout; its state is the index.

    It is not prepared by accelerate, whose loaders fetch one batch ahead: the next rollout would be
    generated before the last update of this one.

    Args:
        args: the settings.
        dataset: the prompts; Trainer reads their number.
        collect: generates and scores the rollout of an index.
        reduce: sums over processes.
        process_index: part of the seed, so that each process shuffles differently.
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
        """Set the index of the rollout: Trainer's epoch."""
        self.rollout = epoch

    def __len__(self) -> int:
        """Return the batches of a rollout: optimizer steps times accumulation."""
        return self.args.steps_per_rollout * self.args.gradient_accumulation_steps

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the inputs of `PPOTrainer.training_step`.

        They are the experience, the rows of a batch, and what its minibatch's loss is divided by.
        """
        args = self.args
        experience = self._collect(self.rollout)

        # One permutation of the rollout for each pass over it.
        seed = args.prompt_seed * 1_000_003 + self.rollout * 7919 + self._process_index
        generator = torch.Generator().manual_seed(seed)
        orders = [
            torch.randperm(args.rollout_size, generator=generator)
            for _ in range(args.num_ppo_epochs)
        ]  # (E,) each

        minibatches = torch.stack(orders).view(args.steps_per_rollout, -1)  # (steps, rows of one)
        counts = torch.stack([experience.token_counts, experience.loss_counts]).double()  # (2, E)
        totals = self._reduce(counts[:, minibatches].sum(2)).clamp(min=1)  # (2, steps)

        size = args.per_device_train_batch_size
        of_steps = zip(minibatches.tolist(), totals.T.tolist(), strict=True)
        for rows, (tokens, denominator) in of_steps:
            for first in range(0, len(rows), size):
                batch = {"rows": rows[first : first + size], "tokens": tokens}
                yield {"experience": experience, "denominator": denominator, **batch}
