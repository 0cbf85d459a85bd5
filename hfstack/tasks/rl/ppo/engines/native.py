"""Sample from the live weights with a key-value cache: the native rollout engine.

Its advantages over `generate`: log-probabilities (and on a shared trunk values) of the sampled
tokens come for free, finished completions leave the batch, prompts are decoded with others of
similar length, and a prompt that is there several times is read once.

Legend: b completions of a batch, r of them that are still generated, u different prompts, P tokens
of the longest prompt, T tokens of the longest completion, S tokens so far, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache

from hfstack.tasks.rl.ppo.actor_critic import ActorCritic, DecodingStep
from hfstack.tasks.rl.ppo.batching import plan_chunks
from hfstack.tasks.rl.ppo.engines.interface import Rollout, SamplingSettings, pad_left

# The batch is made smaller when fewer than this share of its rows are still generated.
_MIN_ACTIVE_SHARE = 0.7

# The overhead of one decoding step, in prompt tokens that could be processed meanwhile: prompts
# are decoded apart only where that saves more padding. On an accelerator a step is all overhead, so
# there prompts are decoded together.
_STEP_TOKENS = {"cpu": 32}
_STEP_TOKENS_ACCELERATOR = 8192


class NativeEngine:
    """Samples completions from the live weights; the state is its settings alone.

    Args:
        settings: how to sample.
        max_over_processes: the largest of a number over all processes, when the weights are sharded
            over them: every process then takes as many steps as the slowest, since each step
            gathers weights. None otherwise.
        generator: of the random numbers; None for torch's own.
    """

    exact_log_probs = True

    def __init__(
        self,
        settings: SamplingSettings,
        *,
        max_over_processes: Callable[[int], int] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        self.settings = settings
        self.max_over_processes = max_over_processes
        self.generator = generator

    @torch.no_grad()
    def generate(self, actor_critic: ActorCritic, prompt_ids: Sequence[Sequence[int]]) -> Rollout:
        """Generate one completion for each prompt."""
        count = len(prompt_ids)
        completions: list[Tensor] = [torch.empty(0)] * count
        log_probs, values = completions.copy(), completions.copy()
        finished = torch.zeros(count, dtype=torch.bool)  # (N,)

        lengths = [len(prompt) for prompt in prompt_ids]
        for rows in self._plan_batches(lengths, actor_critic.device.type):
            asked = [prompt_ids[row] for row in rows]
            batch = _DecodingBatch(actor_critic, asked, self.settings, self.generator)
            batch.generate(self.max_over_processes)

            # one copy to the CPU for each table of the batch
            tokens, token_log_probs = batch.tokens.cpu(), batch.log_probs.cpu()  # (b, T) each
            token_values = batch.values.cpu()  # (b, T) or (b, 0)
            for index, (row, length) in enumerate(zip(rows, batch.lengths.tolist(), strict=True)):
                completions[row] = tokens[index, :length]
                log_probs[row] = token_log_probs[index, :length]
                values[row] = token_values[index, :length]

            finished[torch.tensor(rows)] = batch.finished.cpu()

        is_shared = actor_critic.critic_kind == "shared"
        return Rollout(completions, finished, log_probs, values if is_shared else None)

    def _plan_batches(self, lengths: list[int], device_type: str) -> list[list[int]]:
        """Return the prompts that are decoded together, as lists of row numbers."""
        batch_size = self.settings.batch_size or len(lengths)

        # With sharded weights every process needs as many batches.
        if self.max_over_processes is not None:
            order = sorted(range(len(lengths)), key=lambda row: lengths[row])
            return [order[first : first + batch_size] for first in range(0, len(order), batch_size)]

        step_tokens = _STEP_TOKENS.get(device_type, _STEP_TOKENS_ACCELERATOR)
        overhead = step_tokens * self.settings.max_new_tokens
        return plan_chunks(lengths, overhead_tokens=overhead, max_rows=batch_size)


class _DecodingBatch:
    """Prompts that are decoded together, and the tokens generated for each."""

    def __init__(
        self,
        actor_critic: ActorCritic,
        prompt_ids: Sequence[Sequence[int]],
        settings: SamplingSettings,
        generator: torch.Generator | None,
    ) -> None:
        self.actor_critic = actor_critic
        self.settings = settings
        self.generator = generator
        self.with_values = actor_critic.critic_kind == "shared"

        device = actor_critic.device
        places: dict[tuple[int, ...], int] = {}  # of each different prompt, in order
        prompt_of = [places.setdefault(tuple(prompt), len(places)) for prompt in prompt_ids]
        self.prompt_of = torch.tensor(prompt_of, device=device)  # (b,)
        prompts, prompt_mask = pad_left(list(places), settings.pad_token_id)
        self.prompts, self.prompt_mask = prompts.to(device), prompt_mask.to(device)  # (u, P) each

        rows, width = len(prompt_ids), settings.max_new_tokens
        self.tokens = torch.full((rows, width), settings.pad_token_id, device=device)  # (b, T)
        self.log_probs = torch.zeros(rows, width, device=device)  # (b, T)
        value_width = width if self.with_values else 0
        self.values = torch.zeros(rows, value_width, device=device)  # (b, T) or (b, 0)

        self.lengths = torch.full((rows,), width, device=device)  # (b,)
        self.finished = torch.zeros(rows, dtype=torch.bool, device=device)  # (b,)
        self.stops = torch.tensor(settings.stop_token_ids, device=device)

    def generate(self, max_over_processes: Callable[[int], int] | None) -> None:
        """Sample until every completion has ended or has its full length."""
        mask = None if bool(self.prompt_mask.all()) else self.prompt_mask  # (u, P)
        positions = (self.prompt_mask.cumsum(dim=1) - 1).clamp_min(0)  # (u, P)
        step = self._step(self.prompts, positions, mask, make_cache(self.actor_critic))
        positions = positions[:, -1:]  # (u, 1)

        # From here on each completion has its own row: a group's are copies of its prompt's.
        if len(self.prompts) < len(self.prompt_of):
            step = _copy_rows(step, self.prompt_of)
            positions = positions[self.prompt_of]  # (b, 1)
            mask = None if mask is None else mask[self.prompt_of]  # (b, S)

        # the completion of each row in the cache
        rows = torch.arange(len(self.prompt_of), device=self.prompts.device)  # (r,)

        for column in range(self.settings.max_new_tokens):
            sampled = self._sample_column(step, rows, column)  # (r,)
            active = ~self.finished[rows]  # (r,)
            count = int(active.sum())
            most = max_over_processes(count) if max_over_processes else count
            if most == 0 or column + 1 == self.settings.max_new_tokens:
                return

            # Finished rows leave the batch once they are many enough to pay for the copy.
            if 0 < count < _MIN_ACTIVE_SHARE * len(rows):
                keep = active.nonzero()[:, 0]
                step.cache.batch_select_indices(keep)
                rows, sampled, positions = rows[keep], sampled[keep], positions[keep]
                mask = None if mask is None else mask[keep]

            positions = positions + 1
            mask = None if mask is None else torch.nn.functional.pad(mask, (0, 1), value=1)
            step = self._step(sampled[:, None], positions, mask, step.cache)

    def _sample_column(self, step: DecodingStep, rows: Tensor, column: int) -> Tensor:
        """Sample the next token (r,) of each row, and record it."""
        sampled, log_probs = sample_tokens(
            step.logits, self.settings, generator=self.generator
        )  # (r,) each
        self.tokens[rows, column] = sampled
        self.log_probs[rows, column] = log_probs
        if step.values is not None:
            self.values[rows, column] = step.values

        stopped = rows[torch.isin(sampled, self.stops) & ~self.finished[rows]]
        self.lengths[stopped] = column + 1
        self.finished[stopped] = True
        return sampled

    def _step(
        self, tokens: Tensor, positions: Tensor, mask: Tensor | None, cache: Cache | None
    ) -> DecodingStep:
        return self.actor_critic.decode_step(
            tokens, positions, attention_mask=mask, cache=cache, with_values=self.with_values
        )


def _copy_rows(step: DecodingStep, rows: Tensor) -> DecodingStep:
    """Return a step whose row i is a copy of row `rows[i]`.

    Its cache is changed in place.
    """
    step.cache.batch_select_indices(rows)
    values = None if step.values is None else step.values[rows]
    return DecodingStep(step.logits[rows], values, step.cache)


def make_cache(actor_critic: ActorCritic) -> Cache | None:
    """Return an empty cache for the policy.

    None where the model makes one of its own kind (recurrent models).
    """
    if not cast(Any, actor_critic.base)._supports_default_dynamic_cache():
        return None
    return DynamicCache(config=actor_critic.base.config)


def sample_tokens(
    logits: Tensor, settings: SamplingSettings, *, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Sample a token from each row; return it with its log-probability, (r,) each.

    The log-probability is the one before any filter. The cumulative probabilities are searched for
    one uniform number per row, in float64, so that no token of probability 0 is ever sampled and
    the tail of a large vocabulary is not lost to rounding.

    Args:
        logits: (r, V) in fp32.
        settings: temperature and filters.
        generator: of the random numbers; None for torch's own.
    """
    if settings.temperature != 1.0:
        logits = logits / settings.temperature

    largest = logits.amax(dim=-1, keepdim=True)  # (r, 1)
    weights = (logits - largest).exp()  # (r, V)
    cumulative = weights.cumsum(dim=-1, dtype=torch.float64)  # (r, V)
    normalizer = cumulative[:, -1:].log() + largest  # (r, 1)

    if settings.filters:
        kept = weights.masked_fill(find_filtered_tokens(logits, settings), 0.0)
        cumulative = kept.cumsum(dim=-1, dtype=torch.float64)

    # A uniform number below the total: rounding must not push it past the last token.
    total = cumulative[:, -1:]  # (r, 1)
    uniform = torch.rand(total.shape, dtype=torch.float64, device=total.device, generator=generator)
    uniform = uniform * total
    uniform = torch.minimum(uniform, torch.nextafter(total, torch.zeros_like(total)))

    found = torch.searchsorted(cumulative, uniform, right=True)  # (r, 1)
    tokens = found.clamp_(max=logits.shape[1] - 1)
    return tokens[:, 0], (logits.gather(1, tokens) - normalizer).float()[:, 0]


def find_filtered_tokens(logits: Tensor, settings: SamplingSettings) -> Tensor:
    """Return which tokens are never sampled, (r, V) bool.

    They are below the top k, beyond the top p, or under min p. Each filter works on what the one
    before it left, as transformers' processors do (Holtzman et al. 2020, arXiv:1904.09751 for
    top-p; Nguyen et al. 2024, arXiv:2407.01082 for min-p). The likeliest token always stays.
    """
    filtered = torch.zeros_like(logits, dtype=torch.bool)  # (r, V)

    if settings.top_k > 0:
        weakest = logits.topk(min(settings.top_k, logits.shape[1]), dim=-1).values[:, -1:]  # (r, 1)
        filtered |= logits < weakest

    if settings.top_p < 1.0:
        ordered, order = logits.masked_fill(filtered, -torch.inf).sort(dim=-1, descending=True)
        probabilities = ordered.softmax(dim=-1)
        # The tokens before this one hold the share already.
        beyond = probabilities.cumsum(dim=-1) - probabilities >= settings.top_p
        filtered |= torch.zeros_like(filtered).scatter(1, order, beyond)

    if settings.min_p is not None and settings.min_p > 0:
        left = logits.masked_fill(filtered, -torch.inf).softmax(dim=-1)
        filtered |= left < settings.min_p * left.amax(dim=-1, keepdim=True)

    return filtered
