"""Define a rollout engine: token ids of prompts in, completions out.

An engine is an object with `exact_log_probs` and `generate(actor_critic, prompt_ids) -> Rollout`:

- `NativeEngine` (native.py) samples from the live weights and returns log-probabilities and values
  of the tokens that it generated.
- `GenerateEngine` (here) calls the model's own `generate`.
- `VLLMEngine` (vllm.py) pushes the weights to vLLM.

To add one, such as a tool loop or another inference server, write a class with these two members
(`RolloutEngine` says what is asked of them) and hand an object of it to `PPOTrainer(engine=...)`.
`SamplingSettings` holds how the engines here sample; `check_rollout` refuses what an engine must
not return.

Legend: N prompts of this process, T_i tokens of completion i, b prompts of a batch, P tokens of its
longest prompt, T of its longest completion.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from hfstack.errors import DataError
from hfstack.tasks.causal_lm.decoding.decode import pad_left
from hfstack.tasks.causal_lm.decoding.draw import SamplingSettings
from hfstack.tasks.causal_lm.sampling import generation_settings, set_aside_settings
from hfstack.tasks.rl.ppo.actor_critic import ActorCritic


@dataclass
class Rollout:
    """Completions of N prompts, in the prompts' order.

    `log_probs` are of the sampled tokens under the distribution at the sampling temperature: over
    all tokens, not only those that top-k, top-p or min-p keep.
    """

    # N times (T_i,) on the CPU; a stop token that was generated is the last one
    completion_ids: list[Tensor]

    # (N,) bool on the CPU: ended by a stop token, not by length
    finished: Tensor

    # N times (T_i,); None: the trainer computes them
    log_probs: list[Tensor] | None = None

    # N times (T_i,), of the state before each token, with a shared trunk; None: the trainer
    # computes them
    values: list[Tensor] | None = None

    # N times (T_i,) bool: True where the policy generated the token, False where a tool did; None:
    # all by the policy
    generated_mask: list[Tensor] | None = None


class RolloutEngine(Protocol):
    """What PPOTrainer asks of an engine.

    `generate` is called on every process with its own prompts, without gradients, in eval mode and
    under the trainer's autocast. Under FSDP the weights are gathered by `actor_critic.decode_step`
    alone.

    `exact_log_probs` says that the log-probabilities are those of the trainer's own forward pass up
    to rounding, so that they can be used as the old policy's. Otherwise the trainer computes them,
    and corrects for the difference by truncated importance sampling.
    """

    exact_log_probs: bool

    def generate(self, actor_critic: ActorCritic, prompt_ids: Sequence[Sequence[int]]) -> Rollout:
        """Generate one completion for each prompt."""
        ...


class GenerateEngine:
    """Generates by `model.generate`, with the caches and processors of transformers."""

    exact_log_probs = False

    def __init__(
        self, settings: SamplingSettings, *, pads: bool = True, use_cache: bool = True
    ) -> None:
        """Prepare to generate.

        Args:
            settings: how to sample.
            pads: prompts of different lengths may be generated together, padded on the left; off,
                only prompts of one length are.
            use_cache: carry the model's state from token to token; off, the whole text is read
                again for each.
        """
        self.settings = settings
        self.pads = pads
        self.use_cache = use_cache

    def generate(self, actor_critic: ActorCritic, prompt_ids: Sequence[Sequence[int]]) -> Rollout:
        """Generate one completion for each prompt.

        Log-probabilities are left to the trainer.
        """
        settings = self.settings
        config = generation_settings(
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            min_p=settings.min_p or 0.0,
            end_ids=settings.stop_token_ids,
            pad_id=settings.pad_token_id,
        )

        stops = torch.tensor(settings.stop_token_ids)
        completions: list[Tensor] = [torch.empty(0)] * len(prompt_ids)  # (T_i,) each
        finished = torch.zeros(len(prompt_ids), dtype=torch.bool)  # (N,)

        for rows in self._batches([len(prompt) for prompt in prompt_ids]):
            tokens, mask = pad_left([prompt_ids[row] for row in rows], settings.pad_token_id)
            with set_aside_settings(actor_critic.policy):
                whole = cast(Any, actor_critic.policy).generate(
                    input_ids=tokens.to(actor_critic.device),
                    attention_mask=mask.to(actor_critic.device),
                    generation_config=config,
                    use_cache=self.use_cache,
                )  # (b, P + T)

            # What is behind the first stop token is padding.
            for index, row in zip(rows, whole[:, tokens.shape[1] :].cpu(), strict=True):
                stopped = torch.isin(row, stops).nonzero()
                length = int(stopped[0]) + 1 if len(stopped) else len(row)
                completions[index] = row[:length].clone()
                finished[index] = len(stopped) > 0

        return Rollout(completions, finished)

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Yield the prompts that are generated together, as lists of row numbers."""
        groups = [list(range(len(lengths)))]
        if not self.pads:
            groups = [[row for row in groups[0] if lengths[row] == n] for n in sorted(set(lengths))]
        batch_size = self.settings.batch_size or len(lengths)
        for group in groups:
            for first in range(0, len(group), batch_size):
                yield group[first : first + batch_size]


def join_rollouts(parts: Sequence[Rollout]) -> Rollout:
    """Return one rollout of several of the same engine, in their order."""
    if len(parts) == 1:
        return parts[0]

    def joined(name: str) -> list[Tensor] | None:
        lists: list[list[Tensor] | None] = [getattr(part, name) for part in parts]
        return None if lists[0] is None else [row for rows in lists for row in rows or ()]

    return Rollout(
        [row for part in parts for row in part.completion_ids],
        torch.cat([part.finished for part in parts]),
        log_probs=joined("log_probs"),
        values=joined("values"),
        generated_mask=joined("generated_mask"),
    )


def check_rollout(rollout: Rollout, prompts: Sequence[Any]) -> None:
    """Refuse what an engine must not return.

    Raises:
        DataError: fewer completions than prompts, a completion of zero tokens, or lists that do not
            fit together.
    """
    if len(rollout.completion_ids) != len(prompts):
        raise DataError(
            f"the rollout engine returned {len(rollout.completion_ids)} completions for "
            f"{len(prompts)} prompts"
        )

    lengths = [len(completion) for completion in rollout.completion_ids]
    if 0 in lengths:
        index = lengths.index(0)
        raise DataError(
            "the rollout engine returned a completion of zero tokens for prompt "
            f"{index + 1} of {len(prompts)} ({str(prompts[index])[:60]!r}): return at least the "
            "token at which it stopped"
        )

    for name in ("log_probs", "values", "generated_mask"):
        parts: list[Tensor] | None = getattr(rollout, name)
        if parts is not None and [len(part) for part in parts] != lengths:
            raise DataError(
                f"the rollout engine's {name} do not have one entry for each token of its "
                "completions"
            )
