"""Generate the next rollout in a thread while the trainer learns from this one.

The completions come from a copy of the policy as it was before this rollout's updates, so that they
are one rollout old when they are trained on. Their log-probabilities under the copy are the
sampler's, those of the policy at that time the old ones, and truncated importance weights correct
for the difference, as for an engine that samples from a slightly different policy.
"""

import copy
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

from torch import nn

from hfstack.tasks.rl.ppo.actor_critic import ActorCritic
from hfstack.tasks.rl.ppo.engines.interface import Rollout

Generated = tuple[list[list[int]], Rollout]  # prompts as tokens, and their completions


def copy_policy(actor_critic: ActorCritic) -> ActorCritic:
    """Return a copy of the policy without its critic, in evaluation mode.

    Frozen weights, such as the base of an adapter, are shared with the policy.
    """
    policy = cast(nn.Module, actor_critic.policy)
    shared = {id(weight): weight for weight in policy.parameters() if not weight.requires_grad}
    copied = copy.deepcopy(policy, cast(dict[int, Any], shared))
    return ActorCritic(cast(Any, copied), critic="none").eval().requires_grad_(False)


class RolloutAhead:
    """Holds the rollout that is generated ahead, at most one.

    Args:
        generate: generates the completions of the rollout of an index from a policy; called in a
            thread of its own.
    """

    def __init__(self, generate: Callable[[ActorCritic, int], Generated]) -> None:
        self._generate = generate
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._pending: tuple[int, Future[Generated]] | None = None

    def start(self, actor_critic: ActorCritic, index: int) -> None:
        """Begin to generate the rollout of an index from the policy as it is now."""
        policy = copy_policy(actor_critic)
        self._pending = (index, self._pool.submit(self._generate, policy, index))

    def take(self, index: int) -> Generated | None:
        """Return the rollout of an index when it is there; None where none was begun.

        What went wrong in the thread is raised here.
        """
        pending, self._pending = self._pending, None
        if pending is None or pending[0] != index:
            return None
        return pending[1].result()
