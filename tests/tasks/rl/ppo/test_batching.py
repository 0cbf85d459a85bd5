"""Chunks by length: the cheapest split, and batches whose scored tokens are where they should
be."""

import itertools
import random

import pytest
import torch

from hfstack.tasks.rl.ppo.actor_critic import TokenScores
from hfstack.tasks.rl.ppo.batching import Sequences, equalize_passes, plan_chunks, score_completions


def cost(lengths: list[int], chunks: list[list[int]], overhead: int) -> int:
    return sum(len(chunk) * max(lengths[row] for row in chunk) + overhead for chunk in chunks)


def cheapest(lengths: list[int], overhead: int) -> int:
    """Return the lowest cost of every way to split the sorted lengths."""
    ordered, best = sorted(lengths), []
    for count in range(len(lengths)):
        for cuts in itertools.combinations(range(1, len(lengths)), count):
            edges = [0, *cuts, len(lengths)]
            best.append(
                sum((b - a) * ordered[b - 1] + overhead for a, b in itertools.pairwise(edges))
            )
    return min(best)


@pytest.mark.parametrize("overhead", [0, 5, 40, 1000])
def test_the_plan_is_the_cheapest(overhead: int):
    generator = random.Random(overhead)
    lengths = [generator.randint(1, 60) for _ in range(9)]
    chunks = plan_chunks(lengths, overhead_tokens=overhead)
    assert sorted(row for chunk in chunks for row in chunk) == list(range(9))
    assert cost(lengths, chunks, overhead) == cheapest(lengths, overhead)


def test_the_plan_keeps_its_bounds():
    lengths = [10, 3, 90, 4, 5, 12, 11]
    chunks = plan_chunks(lengths, overhead_tokens=10_000, max_tokens=30)
    assert all(
        len(chunk) == 1 or len(chunk) * max(lengths[row] for row in chunk) <= 30 for chunk in chunks
    )
    assert [2] in chunks, "what is too long alone stands alone"
    assert (
        max(len(chunk) for chunk in plan_chunks(lengths, overhead_tokens=10_000, max_rows=2)) == 2
    )


@pytest.fixture
def sequences() -> Sequences:
    prompts = [[1, 2, 3], [4], [5, 6]]
    return Sequences.join(
        prompts, [torch.tensor([7, 8]), torch.tensor([9, 10, 11]), torch.tensor([12])], 0
    )


def test_packed_targets_are_the_completions_and_positions_are_before_them(sequences: Sequences):
    batch = sequences.pack([2, 0], torch.device("cpu"))
    assert batch.input_ids.tolist() == [[5, 6, 12, 0], [1, 2, 3, 7]], "the 8 is only a target"
    assert batch.targets.tolist() == [12, 7, 8]
    assert batch.input_ids.flatten()[batch.positions].tolist() == [6, 3, 7]


def test_scores_come_back_in_order(sequences: Sequences):
    def score(batch):
        return TokenScores(batch.targets.float(), None, None)

    for max_tokens in (None, 4, 8):
        tables = score_completions(
            score, sequences, device=torch.device("cpu"), max_tokens=max_tokens
        )
        assert tables["log_probs"].tolist() == [[7, 8, 0], [9, 10, 11], [12, 0, 0]]
        assert "values" not in tables


def test_processes_make_as_many_passes():
    assert equalize_passes([[0], [1]], lambda count: count + 2) == [[0], [1], [1], [1]]
    assert equalize_passes([[0], [1]], None) == [[0], [1]]
