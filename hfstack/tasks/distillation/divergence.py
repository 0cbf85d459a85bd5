"""Compute divergences between a teacher's and a student's next tokens.

With p the teacher, q the student, both softened by one temperature:

    forward KL      sum p log(p / q)         covers all that the teacher does (Hinton et al. 2015)
    reverse KL      sum q log(q / p)         keeps to what the teacher does most (Gu et al. 2024)
    generalised JSD b KL(p || m) + (1 - b) KL(q || m),  m = b p + (1 - b) q

The last is equation 1 of Agarwal et al. 2024 (arXiv:2306.13649), with b as `beta`; its limits, once
divided by b or 1 - b, are the two others, which is why they are kinds of their own here.

Legend: n positions, V vocabulary, k kept tokens of the teacher.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from hfstack.errors import ConfigError

DivergenceName = Literal["forward_kl", "reverse_kl", "jsd"]
DIVERGENCES: tuple[str, ...] = get_args(DivergenceName)


@dataclass(frozen=True)
class Objective:
    """What a student is trained for: a divergence, and a share of the rows' tokens."""

    kind: DivergenceName = "forward_kl"
    beta: float = 0.5
    temperature: float = 1.0
    hard_weight: float = 0.0

    def combine(self, divergence: Tensor, hard: Tensor) -> Tensor:
        """Return the loss of a divergence and of a cross-entropy.

        The gradient of a softened divergence shrinks with the temperature squared, by which it is
        multiplied (Hinton et al. 2015, arXiv:1503.02531, section 2.1), so that one weight means the
        same at every temperature.
        """
        soft = divergence * self.temperature**2
        return (1 - self.hard_weight) * soft + self.hard_weight * hard


@dataclass(frozen=True)
class TopK:
    """What is kept of a teacher's distribution at n positions.

    The mass of all other tokens is one more outcome, so that nothing is renormalised away. A
    divergence over these k + 1 outcomes is at most the one over all V (the data processing
    inequality), and equal to it where teacher and student share the shape of the tail.
    """

    ids: Tensor  # (n, k), int64
    log_probs: Tensor  # (n, k + 1), the tail last


def find_divergence(
    teacher: Tensor, student: Tensor, kind: DivergenceName, *, beta: float = 0.5
) -> Tensor:
    """Return the divergence in nats of each position, (n,).

    Args:
        teacher: log-probabilities (n, V).
        student: log-probabilities (n, V).
        kind: which divergence.
        beta: the teacher's share of the mixture; of `jsd` alone.
    """
    if kind == "forward_kl":
        return _kl(teacher, student)
    if kind == "reverse_kl":
        return _kl(student, teacher)

    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log(1 - beta))  # (n, V)
    return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)


def _kl(first: Tensor, second: Tensor) -> Tensor:
    """Return KL(first || second) of log-probabilities: (n,) from (n, V) each."""
    return (first.exp() * (first - second)).sum(dim=-1)


def keep_top(logits: Tensor, k: int, *, temperature: float) -> TopK:
    """Return the likeliest tokens of logits (n, V) with the mass of the others."""
    softened = logits.float() / temperature
    top, ids = softened.topk(k, dim=-1)  # (n, k) each
    normalizer = softened.logsumexp(dim=-1, keepdim=True)  # (n, 1)
    tail = _log_sum_of_others(softened, ids)  # (n, 1)
    return TopK(ids, torch.cat([top, tail], dim=-1) - normalizer)


def gather_top(softened: Tensor, ids: Tensor) -> Tensor:
    """Return log-probabilities of the kept tokens and of all others: (n, k + 1).

    Args:
        softened: the student's logits (n, V), divided by the temperature.
        ids: the teacher's kept tokens (n, k).
    """
    normalizer = softened.logsumexp(dim=-1, keepdim=True)  # (n, 1)
    kept = softened.gather(-1, ids)  # (n, k)
    return torch.cat([kept, _log_sum_of_others(softened, ids)], dim=-1) - normalizer


def _log_sum_of_others(softened: Tensor, ids: Tensor) -> Tensor:
    """Return log sum exp of the logits that are not among the ids: (n, 1).

    Summed and not subtracted from 1, which would leave rounding alone of a thin tail.
    """
    others = softened.scatter(-1, ids, -math.inf)  # (n, V)
    return others.logsumexp(dim=-1, keepdim=True)


def check_objective(objective: Objective) -> None:
    """Refuse settings of the loss that are out of range, or that do nothing.

    Raises:
        ConfigError: naming the option.
    """
    if objective.kind not in DIVERGENCES:
        raise ConfigError(
            f"--divergence must be one of {', '.join(DIVERGENCES)}, got {objective.kind!r}"
        )

    if not 0 < objective.beta < 1:
        raise ConfigError(
            f"--beta must be between 0 and 1, got {objective.beta}: at its ends it is no "
            "divergence; set --divergence forward_kl or reverse_kl"
        )
    if objective.kind != "jsd" and objective.beta != Objective.beta:
        raise ConfigError(
            f"--beta {objective.beta} mixes the distributions of --divergence jsd; "
            f"{objective.kind} has none: leave it out"
        )
    if not objective.temperature > 0:
        raise ConfigError(f"--temperature must be above 0, got {objective.temperature}")
    if not 0 <= objective.hard_weight < 1:
        raise ConfigError(
            f"--hard_loss_weight must be in [0, 1), got {objective.hard_weight}: at 1 the teacher "
            "teaches nothing; hfstack run sft does that without one"
        )
