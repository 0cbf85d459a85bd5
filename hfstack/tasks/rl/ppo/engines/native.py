"""The native rollout engine: sample from the live weights with a key-value cache.

What it saves over `generate`: log-probabilities (and on a shared trunk values) of the sampled
tokens come for free, finished completions leave the batch, and prompts are decoded with others of
their length.

Legend: b completions of a batch, P tokens of its longest prompt, T tokens of the longest
completion, V vocabulary."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache

from hfstack.tasks.rl.ppo.actor_critic import ActorCritic, Decoded
from hfstack.tasks.rl.ppo.batching import plan_chunks
from hfstack.tasks.rl.ppo.engines.interface import Rollout, SamplingSettings, pad_left

_KEPT_SHARE = 0.7  # the batch is made smaller when fewer than this share of its rows still write
# What one more decoding step costs, in tokens of prompt that could be read meanwhile: so many
# prompts are not worth being decoded apart. On an accelerator a step is all overhead, so there
# prompts are decoded together.
_STEP_TOKENS = {"cpu": 32}
_STEP_TOKENS_ACCELERATOR = 8192


class NativeEngine:
    """Samples completions; the state is its settings alone.

    Args:
        settings: how to sample.
        largest: the largest of a number over all processes, when the weights are sharded over them:
            every process then takes as many steps as the slowest, since each step gathers weights.
            None otherwise.
    """

    exact_log_probs = True

    def __init__(
        self, settings: SamplingSettings, *, largest: Callable[[int], int] | None = None
    ) -> None:
        self.settings = settings
        self.largest = largest

    @torch.no_grad()
    def generate(self, actor_critic: ActorCritic, prompt_ids: Sequence[Sequence[int]]) -> Rollout:
        """Write one completion to each prompt."""
        count = len(prompt_ids)
        completions: list[Tensor] = [torch.empty(0)] * count
        log_probs, values = completions.copy(), completions.copy()
        finished = torch.zeros(count, dtype=torch.bool)

        for rows in self._batches([len(prompt) for prompt in prompt_ids], actor_critic.device.type):
            batch = _Batch(actor_critic, [prompt_ids[row] for row in rows], self.settings)
            batch.write(self.largest)
            lengths = batch.lengths.tolist()
            parts = [batch.tokens.cpu(), batch.log_probs.cpu(), batch.values.cpu()]

            for index, row in enumerate(rows):
                completions[row], log_probs[row], values[row] = (
                    part[index, : lengths[index]] for part in parts
                )

            finished[torch.tensor(rows)] = batch.finished.cpu()

        return Rollout(
            completions,
            finished,
            log_probs,
            values if actor_critic.critic_kind == "shared" else None,
        )

    def _batches(self, lengths: list[int], device_type: str) -> list[list[int]]:
        """Which prompts are decoded together."""
        most = self.settings.batch_size or len(lengths)
        if self.largest is not None:  # as many batches on each process
            order = sorted(range(len(lengths)), key=lambda row: lengths[row])
            return [order[first : first + most] for first in range(0, len(order), most)]
        step_tokens = _STEP_TOKENS.get(device_type, _STEP_TOKENS_ACCELERATOR)
        return plan_chunks(
            lengths, overhead_tokens=step_tokens * self.settings.max_new_tokens, most_rows=most
        )


class _Batch:
    """Prompts that are decoded together, and what was written to each."""

    def __init__(
        self,
        actor_critic: ActorCritic,
        prompt_ids: Sequence[Sequence[int]],
        settings: SamplingSettings,
    ) -> None:
        self.actor_critic = actor_critic
        self.settings = settings
        self.with_values = actor_critic.critic_kind == "shared"
        device = actor_critic.device
        self.prompts, self.prompt_mask = (
            part.to(device) for part in pad_left(prompt_ids, settings.pad_token_id)
        )

        shape = (len(prompt_ids), settings.max_new_tokens)  # (b, T)
        self.tokens = torch.full(shape, settings.pad_token_id, device=device)
        self.log_probs = torch.zeros(shape, device=device)
        self.values = torch.zeros(
            shape if self.with_values else (len(prompt_ids), 0), device=device
        )

        self.lengths = torch.full((len(prompt_ids),), settings.max_new_tokens, device=device)
        self.finished = torch.zeros(len(prompt_ids), dtype=torch.bool, device=device)
        self.stops = torch.tensor(settings.stop_token_ids, device=device)

    def write(self, largest: Callable[[int], int] | None) -> None:
        """Sample until every completion has ended or has its full length."""
        mask = None if bool(self.prompt_mask.all()) else self.prompt_mask  # (b, tokens so far)
        positions = (self.prompt_mask.cumsum(dim=1) - 1).clamp_min(0)  # (b, P)

        # which completion each row of the cache is
        rows = torch.arange(len(self.prompts), device=self.prompts.device)
        step = self._step(self.prompts, positions, mask, new_cache(self.actor_critic))
        positions = positions[:, -1:]

        for column in range(self.settings.max_new_tokens):
            sampled, log_probs = sample(step.logits, self.settings)  # (rows,), (rows,)
            self.tokens[rows, column] = sampled
            self.log_probs[rows, column] = log_probs

            if step.values is not None:
                self.values[rows, column] = step.values
            stopped = rows[torch.isin(sampled, self.stops) & ~self.finished[rows]]
            self.lengths[stopped] = column + 1
            self.finished[stopped] = True

            writing = ~self.finished[rows]
            count = int(writing.sum())
            if (
                largest(count) if largest else count
            ) == 0 or column + 1 == self.settings.max_new_tokens:
                return

            if 0 < count < _KEPT_SHARE * len(rows):
                keep = writing.nonzero()[:, 0]
                step.cache.batch_select_indices(keep)
                rows, sampled, positions = rows[keep], sampled[keep], positions[keep]
                mask = None if mask is None else mask[keep]

            positions = positions + 1
            mask = None if mask is None else torch.nn.functional.pad(mask, (0, 1), value=1)
            step = self._step(sampled[:, None], positions, mask, step.cache)

    def _step(
        self, tokens: Tensor, positions: Tensor, mask: Tensor | None, cache: Cache | None
    ) -> Decoded:
        return self.actor_critic.decode_step(
            tokens, positions, attention_mask=mask, cache=cache, with_values=self.with_values
        )


def new_cache(actor_critic: ActorCritic) -> Cache | None:
    """An empty cache for the policy.

    None where the model makes one of its own kind (recurrent models).
    """
    if not cast(Any, actor_critic.base)._supports_default_dynamic_cache():
        return None
    return DynamicCache(config=actor_critic.base.config)


def sample(logits: Tensor, settings: SamplingSettings) -> tuple[Tensor, Tensor]:
    """Draw a token from each row.

    Return it with its log-probability before any filter, (b,) each.

    The cumulated probabilities are searched for one uniform number a row, in float64, so that no
    token of probability 0 is ever drawn and the tail of a large vocabulary does not drown in
    rounding.

    Args:
        logits: (b, V) in fp32.
        settings: temperature and filters.
    """
    if settings.temperature != 1.0:
        logits = logits / settings.temperature
    largest = logits.amax(dim=-1, keepdim=True)  # (b, 1)
    weights = (logits - largest).exp()
    cumulated = weights.cumsum(dim=-1, dtype=torch.float64)  # (b, V)
    normalizer = cumulated[:, -1:].log() + largest

    if settings.filters:
        kept = weights.masked_fill(dropped_tokens(logits, settings), 0.0)
        cumulated = kept.cumsum(dim=-1, dtype=torch.float64)

    total = cumulated[:, -1:]
    drawn = torch.rand(total.shape, dtype=torch.float64, device=total.device) * total
    drawn = torch.minimum(drawn, torch.nextafter(total, torch.zeros_like(total)))

    # (b, 1)
    tokens = torch.searchsorted(cumulated, drawn, right=True).clamp_(max=logits.shape[1] - 1)
    return tokens[:, 0], (logits.gather(1, tokens) - normalizer).float()[:, 0]


def dropped_tokens(logits: Tensor, settings: SamplingSettings) -> Tensor:
    """Return the tokens that are never sampled, (b, V) bool.

    Below the top k, beyond the top p, or under min p.

    Each filter looks at what the one before it left, as transformers' processors do (Holtzman et
    al. 2020, arXiv:1904.09751 for top-p; Nguyen et al. 2024, arXiv:2407.01082 for min-p). The
    likeliest token always stays.
    """
    dropped = torch.zeros_like(logits, dtype=torch.bool)
    if settings.top_k > 0:
        weakest = logits.topk(min(settings.top_k, logits.shape[1]), dim=-1).values[:, -1:]
        dropped |= logits < weakest

    if settings.top_p < 1.0:
        ordered, order = logits.masked_fill(dropped, -torch.inf).sort(dim=-1, descending=True)
        probabilities = ordered.softmax(dim=-1)
        # what came before is enough
        beyond = probabilities.cumsum(dim=-1) - probabilities >= settings.top_p
        dropped |= torch.zeros_like(dropped).scatter(1, order, beyond)

    if settings.min_p is not None and settings.min_p > 0:
        left = logits.masked_fill(dropped, -torch.inf).softmax(dim=-1)
        dropped |= left < settings.min_p * left.amax(dim=-1, keepdim=True)

    return dropped
