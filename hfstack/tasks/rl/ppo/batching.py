"""Batch prompts with completions by length, where padding costs less than a pass.

Legend: N sequences, b of them in a chunk, L tokens of its longest one, n scored tokens, T tokens of
a completion.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hfstack.tasks.rl.ppo.actor_critic import TokenScores

# What one more forward and backward pass costs, in tokens that could be padding instead.
_PASS_TOKENS = {"cpu": 96}
_PASS_TOKENS_ACCELERATOR = 8192


class TokenBatch(NamedTuple):
    """What ActorCritic.forward reads."""

    input_ids: Tensor  # (b, L), padded on the right
    positions: Tensor  # (n,), flat positions before the scored tokens
    targets: Tensor  # (n,), the scored tokens


@dataclass
class Sequences:
    """Prompts with their completions, and where the completions are."""

    tokens: list[Tensor]  # N times (P_i + T_i,)
    prompt_lengths: Tensor  # (N,)
    completion_lengths: Tensor  # (N,)
    pad_token_id: int

    @classmethod
    def join(
        cls,
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Tensor],
        pad_token_id: int,
    ) -> "Sequences":
        """Put each completion behind its prompt."""
        tokens = [
            torch.cat([torch.tensor(prompt, dtype=torch.long), completion.cpu()])
            for prompt, completion in zip(prompt_ids, completion_ids, strict=True)
        ]
        prompt_lengths = torch.tensor([len(prompt) for prompt in prompt_ids])
        return cls(
            tokens, prompt_lengths, torch.tensor([len(one) for one in completion_ids]), pad_token_id
        )

    @property
    def valid(self) -> Tensor:
        """Which places of a (N, T) table hold a completion's token, bool."""
        return torch.arange(int(self.completion_lengths.max())) < self.completion_lengths[:, None]

    def pack(self, rows: Sequence[int], device: torch.device) -> TokenBatch:
        """Return the given rows as one padded batch that scores the completions' tokens."""
        input_ids = pad_sequence(
            [self.tokens[row] for row in rows], batch_first=True, padding_value=self.pad_token_id
        )
        chosen = torch.tensor(rows)
        counts = self.completion_lengths[chosen]  # (b,)

        # before the first token
        first = torch.arange(len(rows)) * input_ids.shape[1] + self.prompt_lengths[chosen] - 1
        skipped = counts.cumsum(0) - counts

        # (n,)
        positions = torch.repeat_interleave(first - skipped, counts) + torch.arange(
            int(counts.sum())
        )
        targets = input_ids.flatten()[positions + 1]

        return TokenBatch(
            *(part.to(device, non_blocking=True) for part in (input_ids, positions, targets))
        )

    def chunks(
        self, rows: Sequence[int], device_type: str, *, max_tokens: int | None
    ) -> list[list[int]]:
        """Split rows by length into the cheapest chunks of at most `max_tokens` each.

        Padding included.
        """
        lengths = [len(self.tokens[row]) for row in rows]
        overhead = _PASS_TOKENS.get(device_type, _PASS_TOKENS_ACCELERATOR)
        plan = plan_chunks(lengths, overhead_tokens=overhead, max_tokens=max_tokens)
        return [[rows[index] for index in chunk] for chunk in plan]


def plan_chunks(
    lengths: Sequence[int],
    *,
    overhead_tokens: int,
    max_tokens: int | None = None,
    most_rows: int | None = None,
) -> list[list[int]]:
    """Return indices in chunks of similar length that need the fewest tokens.

    Padding and overhead included.

    A chunk of b rows whose longest has L tokens costs b L + overhead; the cheapest split of the
    sorted lengths is found by dynamic programming. A row that is longer than `max_tokens` alone
    makes a chunk of its own.

    Args:
        lengths: tokens of each row.
        overhead_tokens: what a chunk costs beside its tokens.
        max_tokens: the most that a chunk may hold, padding included.
        most_rows: the most rows of a chunk.
    """
    order = numpy.argsort(numpy.asarray(lengths), kind="stable")
    ordered = numpy.asarray(lengths)[order]
    count = len(ordered)
    best = numpy.zeros(count + 1)  # best[j]: cost of the first j rows
    begins = numpy.zeros(count + 1, dtype=int)

    for end in range(1, count + 1):
        rows = end - numpy.arange(end)  # of a chunk that begins at 0, 1, ... end - 1
        costs = best[:end] + rows * ordered[end - 1] + overhead_tokens
        forbidden = numpy.zeros(end, dtype=bool)

        if max_tokens is not None:
            forbidden |= rows * ordered[end - 1] > max_tokens
        if most_rows is not None:
            forbidden |= rows > most_rows
        forbidden[-1] = False

        costs[forbidden] = numpy.inf
        begins[end] = int(costs.argmin())
        best[end] = costs[begins[end]]

    chunks: list[list[int]] = []
    end = count
    while end > 0:
        chunks.append(order[begins[end] : end].tolist())
        end = int(begins[end])

    return chunks[::-1]


def score_completions(
    score: Callable[[TokenBatch], TokenScores],
    sequences: Sequences,
    *,
    device: torch.device,
    max_tokens: int | None = None,
    equal_passes: Callable[[int], int] | None = None,
) -> dict[str, Tensor]:
    """Return what a model says about all completions, as tables (N, T) by name.

    0 where there is no token.

    Args:
        score: a forward pass without gradients.
        sequences: what to score.
        device: where the batches go and the tables are.
        max_tokens: of one pass, padding included.
        equal_passes: the largest of a number over all processes, when each pass needs all of them.
    """
    count, width = sequences.valid.shape
    tables: dict[str, Tensor] = {}

    for rows in as_many(
        sequences.chunks(range(count), device.type, max_tokens=max_tokens), equal_passes
    ):
        found = score(sequences.pack(rows, device))
        valid = sequences.valid[torch.tensor(rows)].to(device)  # (b, T)
        for name, flat in found._asdict().items():
            if flat is not None:
                table = tables.setdefault(name, torch.zeros(count, width, device=device))
                block = torch.zeros(valid.shape, device=device).masked_scatter(valid, flat.float())
                table[torch.tensor(rows, device=device)] = block

    return tables


def as_many(chunks: list[list[int]], largest: Callable[[int], int] | None) -> Iterator[list[int]]:
    """Yield the chunks, and the last one again until every process has as many.

    Without `largest` the chunks alone.
    """
    yield from chunks
    if largest is not None:
        for _ in range(largest(len(chunks)) - len(chunks)):
            yield chunks[-1]
