"""Batch prompts with completions by length, so that little of a batch is padding.

Legend: N sequences, P_i tokens of prompt i, T_i of its completion, T of the longest completion, b
sequences in a chunk, L + 1 tokens of its longest one, of which all but the last are read, n scored
tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hfstack.tasks.rl.ppo.actor_critic import TokenScores

# The overhead of one forward and backward pass, in tokens that could be padding instead. Measured
# on the toy of benchmarks/ppo.py: 10 ms, and 0.05 ms a token.
_PASS_TOKENS = {"cpu": 192}
_PASS_TOKENS_ACCELERATOR = 8192

# A pass without gradients keeps no activations, and still has a bound where none is asked for.
_SCORED_TOKENS = 32_768


class TokenBatch(NamedTuple):
    """The inputs of ActorCritic.forward."""

    input_ids: Tensor  # (b, L), padded on the right
    positions: Tensor  # (n,), indices into the flat (b * L) tokens, before each scored token
    targets: Tensor  # (n,), the scored tokens


@dataclass
class Sequences:
    """Prompts joined with their completions, and the lengths of both."""

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
        """Append each completion to its prompt."""
        tokens = [
            torch.cat([torch.tensor(prompt, dtype=torch.long), completion.cpu()])
            for prompt, completion in zip(prompt_ids, completion_ids, strict=True)
        ]
        prompt_lengths = torch.tensor([len(prompt) for prompt in prompt_ids])
        completion_lengths = torch.tensor([len(completion) for completion in completion_ids])
        return cls(tokens, prompt_lengths, completion_lengths, pad_token_id)

    @property
    def valid(self) -> Tensor:
        """Return (N, T) bool: True where a completion has a token."""
        return torch.arange(int(self.completion_lengths.max())) < self.completion_lengths[:, None]

    def pack(self, rows: Sequence[int], device: torch.device) -> TokenBatch:
        """Return the given rows as one padded batch.

        Its scored tokens are those of the completions, row by row. The last column is a target
        alone, which no pass reads.
        """
        tokens = pad_sequence(
            [self.tokens[row] for row in rows], batch_first=True, padding_value=self.pad_token_id
        )  # (b, L + 1)
        input_ids = tokens[:, :-1].contiguous()  # (b, L)
        indices = torch.tensor(rows)  # (b,)
        counts = self.completion_lengths[indices]  # (b,)

        # Row i scores `counts[i]` tokens in a row, whose columns begin one before its completion.
        scored_before = counts.cumsum(0) - counts  # (b,)
        firsts = self.prompt_lengths[indices] - 1 - scored_before  # (b,)
        columns = torch.arange(int(counts.sum())) + firsts.repeat_interleave(counts)  # (n,)
        row_of = torch.arange(len(rows)).repeat_interleave(counts)  # (n,)
        positions = row_of * input_ids.shape[1] + columns  # (n,)
        targets = tokens[row_of, columns + 1]  # (n,)

        return TokenBatch(
            input_ids.to(device, non_blocking=True),
            positions.to(device, non_blocking=True),
            targets.to(device, non_blocking=True),
        )

    def chunks(
        self, rows: Sequence[int], device_type: str, *, max_tokens: int | None
    ) -> list[list[int]]:
        """Split rows by length into the chunks with the lowest cost.

        None has more than `max_tokens` with its padding.
        """
        lengths = [len(self.tokens[row]) - 1 for row in rows]  # the last token is not read
        overhead = _PASS_TOKENS.get(device_type, _PASS_TOKENS_ACCELERATOR)
        chunks = plan_chunks(lengths, overhead_tokens=overhead, max_tokens=max_tokens)
        return [[rows[index] for index in chunk] for chunk in chunks]


def plan_chunks(
    lengths: Sequence[int],
    *,
    overhead_tokens: int,
    max_tokens: int | None = None,
    max_rows: int | None = None,
) -> list[list[int]]:
    """Return indices in chunks of similar lengths that need the fewest tokens.

    A chunk of b rows whose longest has L tokens costs b L + overhead. The cheapest split of the
    sorted lengths is found by dynamic programming. A row that is longer than `max_tokens` alone
    makes a chunk of its own.

    Args:
        lengths: tokens of each row.
        overhead_tokens: cost of a chunk beside its tokens.
        max_tokens: upper bound of a chunk's tokens, padding included.
        max_rows: upper bound of a chunk's rows.
    """
    order = numpy.argsort(numpy.asarray(lengths), kind="stable")  # (N,)
    ordered = numpy.asarray(lengths)[order]  # (N,)
    count = len(ordered)

    # costs[j] is the lowest cost of the first j rows, whose last chunk begins at begins[j].
    costs = numpy.zeros(count + 1)
    begins = numpy.zeros(count + 1, dtype=int)
    for end in range(1, count + 1):
        rows = end - numpy.arange(end)  # (end,), of a last chunk that begins at 0, 1, ... end - 1
        tokens = rows * ordered[end - 1]
        candidates = costs[:end] + tokens + overhead_tokens

        forbidden = numpy.zeros(end, dtype=bool)
        if max_tokens is not None:
            forbidden |= tokens > max_tokens
        if max_rows is not None:
            forbidden |= rows > max_rows
        forbidden[-1] = False  # one row alone is always allowed
        candidates[forbidden] = numpy.inf

        begins[end] = int(candidates.argmin())
        costs[end] = candidates[begins[end]]

    # Follow the beginnings back from the last row.
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
    max_over_processes: Callable[[int], int] | None = None,
) -> dict[str, Tensor]:
    """Return the scores of all completions by a model, as tables (N, T) by name.

    They are 0 where there is no token.

    Args:
        score: a forward pass without gradients.
        sequences: to score.
        device: of the batches and the tables.
        max_tokens: of one pass, padding included; None for 32,768.
        max_over_processes: the largest of a number over all processes, when each pass needs all of
            them; None otherwise.
    """
    count, width = sequences.valid.shape
    tables: dict[str, Tensor] = {}  # (N, T) each
    chunks = sequences.chunks(range(count), device.type, max_tokens=max_tokens or _SCORED_TOKENS)

    for rows in equalize_passes(chunks, max_over_processes):
        scores = score(sequences.pack(rows, device))
        valid = sequences.valid[torch.tensor(rows)].to(device)  # (b, T)

        for name, flat in scores._asdict().items():  # (n,) each
            if flat is not None:
                table = tables.setdefault(name, torch.zeros(count, width, device=device))
                block = torch.zeros(valid.shape, device=device).masked_scatter(valid, flat.float())
                table[torch.tensor(rows, device=device)] = block

    return tables


def equalize_passes(
    chunks: list[list[int]], max_over_processes: Callable[[int], int] | None
) -> list[list[int]]:
    """Return the chunks, and the last one again until every process has as many.

    A list and no iterator, so that the processes agree before the first pass: in between they would
    wait for each other in different places.

    Args:
        chunks: of this process, at least one.
        max_over_processes: the largest of a number over all processes; None leaves the chunks as
            they are.
    """
    if max_over_processes is None:
        return chunks
    return chunks + chunks[-1:] * (max_over_processes(len(chunks)) - len(chunks))
