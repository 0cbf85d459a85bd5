"""Log-probabilities from hidden states: the same numbers and gradients, whatever is held at
once."""

import pytest
import torch

from hfstack.tasks.rl.ppo.log_probs import entropy_of, log_probs_of, score_tokens


@pytest.fixture
def batch() -> tuple[torch.nn.Linear, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 50, bias=False)
    return head, torch.randn(23, 8), torch.randint(0, 50, (23,))


def test_by_hand():
    logits = torch.tensor([[0.0, 0.0], [3.0, 0.0]], dtype=torch.float64)
    assert log_probs_of(logits, torch.tensor([1, 0])).tolist() == pytest.approx(
        [-0.693147, -0.048587], abs=1e-6
    )
    assert entropy_of(logits).tolist() == pytest.approx([0.693147, 0.190865], abs=1e-6)


def test_they_are_those_of_log_softmax(batch):
    head, hidden, targets = batch
    found, entropies = score_tokens(
        head, hidden, targets, vocabulary=50, temperature=0.7, with_entropy=True
    )
    expected = (head(hidden) / 0.7).log_softmax(-1)
    assert torch.allclose(found, expected.gather(1, targets[:, None])[:, 0], atol=1e-6)
    assert entropies is not None and torch.allclose(
        entropies, -(expected.exp() * expected).sum(-1), atol=1e-5
    )


def test_chunks_change_neither_numbers_nor_gradients(batch):
    head, hidden, targets = batch
    weights = torch.randn(23)

    def gradients(logits_at_once: int) -> list[torch.Tensor]:
        leaf = hidden.clone().requires_grad_()
        found, entropies = score_tokens(
            head, leaf, targets, vocabulary=50, with_entropy=True, logits_at_once=logits_at_once
        )
        assert entropies is not None
        loss = (found * weights).sum() + entropies.sum()
        return [found, entropies, *torch.autograd.grad(loss, [leaf, head.weight])]

    for chunked, whole in zip(gradients(4 * 50), gradients(10**9), strict=True):
        assert torch.allclose(chunked, whole, atol=1e-5)


def test_no_logits_of_a_whole_batch_are_kept(batch):
    head, hidden, targets = batch
    kept: list[int] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    for logits_at_once, fits in ((4 * 50, True), (10**9, False)):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            score_tokens(
                head, hidden.requires_grad_(), targets, vocabulary=50, logits_at_once=logits_at_once
            )
        assert (max(kept) <= max(4 * 50, head.weight.numel())) == fits
    made: list[int] = []

    def spy(rows: torch.Tensor) -> torch.Tensor:
        made.append(len(rows))
        return head(rows)

    with torch.no_grad():
        score_tokens(spy, hidden, targets, vocabulary=50, logits_at_once=4 * 50)
    assert made == [4, 4, 4, 4, 4, 3]
