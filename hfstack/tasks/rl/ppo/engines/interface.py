"""Define the interface of rollout engines: from prompts to completions.

An engine is an object with `generate(actor_critic, prompt_ids) -> Rollout`. `NativeEngine`
(sampling.py) samples from the live weights and knows log-probabilities and values of what it wrote;
`GenerateEngine` here calls the model's own `generate`; whoever needs a tool loop or an inference
server writes another one and hands it to PPOTrainer.

Legend: N prompts of this process, T tokens of a completion.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from transformers import GenerationConfig

from hfstack.errors import DataError
from hfstack.tasks.rl.ppo.actor_critic import ActorCritic


@dataclass(frozen=True)
class SamplingSettings:
    """How completions are sampled; the same values for every engine."""

    max_new_tokens: int
    stop_token_ids: tuple[int, ...]
    pad_token_id: int
    temperature: float = 1.0
    top_k: int = 0  # 0: all tokens
    top_p: float = 1.0
    min_p: float | None = None
    batch_size: int | None = None  # completions that are written at once; None: all

    @property
    def filters(self) -> bool:
        """Whether some tokens are never sampled."""
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p is not None


@dataclass
class Rollout:
    """Completions of N prompts, in the prompts' order.

    `log_probs` are of the sampled tokens under the distribution at the sampling temperature: over
    all tokens, not only those that top-k, top-p or min-p leave."""

    # N times (T_i,) on the CPU; a stop token that was written is the last one
    completion_ids: list[Tensor]
    finished: Tensor  # (N,) bool on the CPU: ended by a stop token, not by length
    log_probs: list[Tensor] | None = None  # N times (T_i,); None: the trainer computes them
    values: list[Tensor] | None = (
        None  # N times (T_i,), of the state before each token; a shared trunk only
    )
    written: list[Tensor] | None = (
        None  # N times (T_i,) bool: False where a tool wrote; None: all by the policy
    )


class RolloutEngine(Protocol):
    """What PPOTrainer asks of an engine.

    `generate` is called on every process with its own prompts, without gradients, in eval mode and
    under the trainer's autocast. Under FSDP the weights are gathered by `actor_critic.decode_step`
    alone.

    `exact_log_probs` says that the log-probabilities are those of the trainer's own forward pass up
    to rounding, so that they may stand for the old policy's; otherwise the trainer computes them,
    and corrects for the difference by truncated importance sampling."""

    exact_log_probs: bool

    def generate(self, actor_critic: ActorCritic, prompt_ids: Sequence[Sequence[int]]) -> Rollout:
        """Write one completion to each prompt."""
        ...


class GenerateEngine:
    """Generate by `model.generate`: whatever transformers can decode.

    With its own caches and processors.
    """

    exact_log_probs = False

    def __init__(self, settings: SamplingSettings) -> None:
        self.settings = settings

    def generate(self, actor_critic: ActorCritic, prompt_ids: Sequence[Sequence[int]]) -> Rollout:
        """Write one completion to each prompt; log-probabilities are left to the trainer."""
        chosen = self.settings
        config = GenerationConfig(
            max_new_tokens=chosen.max_new_tokens,
            do_sample=True,
            temperature=chosen.temperature,
            top_k=chosen.top_k,
            top_p=chosen.top_p,
            min_p=chosen.min_p,
            eos_token_id=list(chosen.stop_token_ids),
            pad_token_id=chosen.pad_token_id,
        )

        stops = torch.tensor(chosen.stop_token_ids)
        completions: list[Tensor] = []
        finished: list[bool] = []

        step = chosen.batch_size or len(prompt_ids)
        for first in range(0, len(prompt_ids), step):
            tokens, mask = pad_left(prompt_ids[first : first + step], chosen.pad_token_id)  # (b, P)

            # (b, T)
            written = cast(Any, actor_critic.policy).generate(
                input_ids=tokens.to(actor_critic.device),
                attention_mask=mask.to(actor_critic.device),
                generation_config=config,
            )[:, tokens.shape[1] :]
            for row in written.cpu():
                stopped = torch.isin(row, stops).nonzero()
                length = int(stopped[0]) + 1 if len(stopped) else len(row)
                completions.append(row[:length].clone())
                finished.append(len(stopped) > 0)

        return Rollout(completions, torch.tensor(finished))


def pad_left(sequences: Sequence[Sequence[int]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask, (b, P) each on the CPU, padded on the left."""
    width = max(len(sequence) for sequence in sequences)
    tokens = torch.full((len(sequences), width), pad_token_id)
    mask = torch.zeros_like(tokens)
    for row, sequence in enumerate(sequences):
        tokens[row, width - len(sequence) :] = torch.tensor(sequence)
        mask[row, width - len(sequence) :] = 1
    return tokens, mask


def check_rollout(rollout: Rollout, prompts: Sequence[Any]) -> None:
    """Refuse what an engine must not return.

    Raises:
        DataError: fewer completions than prompts, a completion of zero tokens, or lists that do not
            fit together.
    """
    if len(rollout.completion_ids) != len(prompts):
        raise DataError(
            f"the rollout engine wrote {len(rollout.completion_ids)} completions to "
            f"{len(prompts)} prompts"
        )

    lengths = [len(completion) for completion in rollout.completion_ids]
    if 0 in lengths:
        index = lengths.index(0)
        raise DataError(
            f"the rollout engine wrote a completion of zero tokens to prompt {index + 1} of "
            f"{len(prompts)} "
            f"({str(prompts[index])[:60]!r}): return at least the token at which it stopped"
        )

    for name in ("log_probs", "values", "written"):
        parts: list[Tensor] | None = getattr(rollout, name)
        if parts is not None and [len(part) for part in parts] != lengths:
            raise DataError(
                f"the rollout engine's {name} do not have one entry for each token of its "
                "completions"
            )
