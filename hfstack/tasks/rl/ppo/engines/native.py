"""Sample from the live weights with a key-value cache: the native rollout engine.

Its advantages over `generate`: log-probabilities (and on a shared trunk values) of the sampled
tokens come for free, finished completions leave the batch and others take their place, and a prompt
that is there several times is read once.

Legend: N prompts of this process, T tokens of the longest completion.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch

from hfstack.tasks.causal_lm.decoding.decode import Decoder
from hfstack.tasks.causal_lm.decoding.draw import SamplingSettings
from hfstack.tasks.causal_lm.decoding.graphs import CudaCapture, GraphedSteps
from hfstack.tasks.rl.ppo.actor_critic import ActorCritic
from hfstack.tasks.rl.ppo.batching import plan_chunks
from hfstack.tasks.rl.ppo.engines.interface import Rollout

# The overhead of one decoding step, in prompt tokens that could be processed meanwhile: prompts
# are read apart only where that saves more padding. On an accelerator a step is all overhead.
_STEP_TOKENS = {"cpu": 32}
_STEP_TOKENS_ACCELERATOR = 8192

# Tables of keys and values that take at most this share of the device's memory are kept between
# rollouts, and their graphs with them; larger ones are freed for training.
_KEPT_SHARE = 1 / 16


class NativeEngine:
    """Samples completions from the live weights; the state is its settings alone.

    Args:
        settings: how to sample.
        max_over_processes: the largest of a number over all processes, when the weights are sharded
            over them: every process then takes as many steps as the slowest, since each step
            gathers weights. None otherwise.
        generator: of the random numbers; None for torch's own.
        cuda_graphs: on a GPU, capture steps as CUDA graphs and replay them. Weights that are
            sharded, and models without a cache of keys and values, generate without.
    """

    exact_log_probs = True

    def __init__(
        self,
        settings: SamplingSettings,
        *,
        max_over_processes: Callable[[int], int] | None = None,
        generator: torch.Generator | None = None,
        cuda_graphs: bool = False,
    ) -> None:
        self.settings = settings
        self.max_over_processes = max_over_processes
        self.generator = generator
        self.cuda_graphs = cuda_graphs
        self._graphs: tuple[ActorCritic, GraphedSteps] | None = None

    @torch.no_grad()
    def generate(self, actor_critic: ActorCritic, prompt_ids: Sequence[Sequence[int]]) -> Rollout:
        """Generate one completion for each prompt."""
        graphs = self._graphs_of(actor_critic)
        decoder = Decoder(
            partial(actor_critic.decode_step, with_values=True),
            self.settings,
            config=actor_critic.base.config if _takes_a_cache(actor_critic) else None,
            device=actor_critic.device,
            max_over_processes=self.max_over_processes,
            generator=self.generator,
            graphs=graphs,
        )
        lengths = [len(prompt) for prompt in prompt_ids]
        found = decoder.decode(prompt_ids, self._plan_chunks(lengths, decoder))
        if graphs is not None:
            memory = torch.cuda.get_device_properties(actor_critic.device).total_memory
            graphs.close_cache(keep_bytes=memory * _KEPT_SHARE)

        tables = (found.tokens, found.log_probs, found.values)  # (N, T) each
        counts = found.lengths.tolist()
        rows = [[row[:count] for row, count in zip(table, counts, strict=True)] for table in tables]
        is_shared = actor_critic.critic_kind == "shared"
        return Rollout(rows[0], found.finished, rows[1], rows[2] if is_shared else None)

    def _graphs_of(self, actor_critic: ActorCritic) -> GraphedSteps | None:
        """Return the graphs of a policy, which are kept until another one generates."""
        if not self.cuda_graphs or actor_critic.device.type != "cuda":
            return None
        if self._graphs is None or self._graphs[0] is not actor_critic:
            step = partial(actor_critic.decode_step, with_values=True)
            self._graphs = (actor_critic, GraphedSteps(step, actor_critic.base, CudaCapture()))
        return self._graphs[1]

    def _plan_chunks(self, lengths: list[int], decoder: Decoder) -> list[list[int]]:
        """Return the prompts that are read together, as lists of row numbers."""
        batch_size = self.settings.batch_size or len(lengths)

        # With sharded weights every process needs as many batches.
        if self.max_over_processes is not None:
            order = sorted(range(len(lengths)), key=lambda row: lengths[row])
            return [order[first : first + batch_size] for first in range(0, len(order), batch_size)]

        # Completions that do not join others are decoded with the prompts they are read with.
        steps = 1 if decoder.refills else self.settings.max_new_tokens
        step_tokens = _STEP_TOKENS.get(decoder.device.type, _STEP_TOKENS_ACCELERATOR)
        return plan_chunks(lengths, overhead_tokens=step_tokens * steps, max_rows=batch_size)


def _takes_a_cache(actor_critic: ActorCritic) -> bool:
    """Return whether the policy takes a cache of transformers, not one of its own."""
    return bool(cast(Any, actor_critic.base)._supports_default_dynamic_cache())
