"""Divergences by hand, against TRL's, and of a teacher's top tokens; a loss in parts."""

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from trl.experimental.gkd.gkd_trainer import GKDTrainer
from trl.trainer.distillation_trainer import _chunked_divergence_loss

from hfstack.errors import ConfigError
from hfstack.tasks.distillation import chunked_loss
from hfstack.tasks.distillation.chunked_loss import ChunkedDistillation, positions_at_once
from hfstack.tasks.distillation.divergence import (
    DIVERGENCES,
    DivergenceName,
    Objective,
    check_objective,
    find_divergence,
    gather_top,
    keep_top,
)

BETAS = {"forward_kl": 0.0, "reverse_kl": 1.0, "jsd": 0.3}  # how TRL names the kinds


def logs(*shares: float) -> Tensor:
    return torch.tensor([shares], dtype=torch.float64).log()


def test_each_divergence_of_a_hand_worked_pair() -> None:
    teacher, student = logs(0.75, 0.25), logs(0.5, 0.5)
    # 3/4 ln(3/2) + 1/4 ln(1/2), and 1/2 ln(2/3) + 1/2 ln 2
    forward = 0.75 * math.log(1.5) - 0.25 * math.log(2)
    reverse = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
    assert find_divergence(teacher, student, "forward_kl").item() == pytest.approx(forward)
    assert find_divergence(teacher, student, "reverse_kl").item() == pytest.approx(reverse)
    assert forward == pytest.approx(0.130812) and reverse == pytest.approx(0.143841)

    # at beta 1/2 the mixture is (5/8, 3/8)
    half = 0.5 * (0.75 * math.log(1.2) + 0.25 * math.log(2 / 3))
    half += 0.5 * (0.5 * math.log(0.8) + 0.5 * math.log(4 / 3))
    found = find_divergence(teacher, student, "jsd", beta=0.5).item()
    assert found == pytest.approx(half) and half == pytest.approx(0.033822, abs=1e-6)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_a_divergence_is_0_of_equals_and_its_limits_are_the_kls(kind: DivergenceName) -> None:
    torch.manual_seed(0)
    same, other = torch.randn(2, 5, 7, dtype=torch.float64).log_softmax(-1)
    assert find_divergence(same, same, kind).abs().max() < 1e-12
    assert (find_divergence(same, other, kind) > 0).all()
    small = find_divergence(same, other, "jsd", beta=1e-6) / 1e-6
    assert torch.allclose(small, find_divergence(same, other, "forward_kl"), rtol=1e-4)


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_loss_and_gradients_are_those_of_trl(kind: DivergenceName, temperature: float) -> None:
    torch.manual_seed(1)
    hidden, taught = torch.randn(1, 40, 8), torch.randn(1, 40, 12)
    weight, head = torch.randn(30, 8), torch.randn(30, 12)
    bias = torch.randn(30)
    beta = BETAS[kind]

    ours = [tensor.clone().requires_grad_() for tensor in (hidden[0], weight, bias)]
    objective = Objective(kind, beta if kind == "jsd" else 0.5, temperature)
    loss, divergence, _ = ChunkedDistillation.apply(
        *ours,
        torch.zeros(40, dtype=torch.int64),
        lambda start, stop: taught[0, start:stop] @ head.T,
        lambda logits: logits,
        objective,
        True,
    )
    loss.backward()

    theirs = [tensor.clone().requires_grad_() for tensor in (hidden, weight, bias)]
    reference, _, _ = _chunked_divergence_loss(
        *(theirs[0], taught, theirs[1], head, torch.ones(1, 40)),
        beta,
        num_items_in_batch=1,
        student_lm_head_bias=theirs[2],
        temperature=temperature,
    )
    # ours is scaled by the temperature squared (Hinton et al. 2015), TRL's is not
    scaled = reference * temperature**2
    scaled.backward()
    assert loss.item() == pytest.approx(scaled.item(), rel=1e-5)
    assert divergence.item() == pytest.approx(reference.item(), rel=1e-5)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.grad is not None and other.grad is not None
        assert torch.allclose(mine.grad, other.grad.reshape(mine.shape), rtol=1e-3, atol=1e-5)

    # and its older one, from all logits
    plain = GKDTrainer.generalized_jsd_loss(
        hidden @ weight.T + bias, taught @ head.T, beta=beta, temperature=temperature
    )
    assert divergence.item() == pytest.approx(plain.item(), rel=1e-5)


def test_the_hard_loss_is_cross_entropy_and_the_weights_share() -> None:
    torch.manual_seed(2)
    hidden, weight = torch.randn(9, 4, requires_grad=True), torch.randn(6, 4, requires_grad=True)
    teacher, targets = torch.randn(9, 6), torch.randint(6, (9,))
    objective = Objective("forward_kl", temperature=2.0, hard_weight=0.25)
    loss, divergence, hard = ChunkedDistillation.apply(
        *(hidden, weight, None, targets),
        lambda start, stop: teacher[start:stop],
        lambda logits: logits,
        objective,
        True,
    )
    expected = torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    assert hard.item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.item() == pytest.approx(0.75 * 4 * divergence.item() + 0.25 * hard.item(), rel=1e-5)
    mine = torch.autograd.grad(loss, [hidden, weight])
    soft = find_divergence(
        (teacher / 2).log_softmax(-1), (hidden @ weight.T / 2).log_softmax(-1), "forward_kl"
    )
    whole = torch.autograd.grad(0.75 * 4 * soft.sum() + 0.25 * expected, [hidden, weight])
    for one, other in zip(mine, whole, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_top_tokens_with_their_tail_are_a_lower_bound_and_nothing_is_lost(
    kind: DivergenceName,
) -> None:
    torch.manual_seed(3)
    teacher, student = 3 * torch.randn(50, 40), 3 * torch.randn(50, 40)
    whole = find_divergence(teacher.log_softmax(-1), student.log_softmax(-1), kind)
    before = torch.zeros(50)
    for k in (1, 4, 16, 39):
        top = keep_top(teacher, k, temperature=1.0)
        kept = gather_top(student, top.ids)
        for log_probs in (top.log_probs, kept):
            assert torch.allclose(log_probs.exp().sum(-1), torch.ones(50), atol=1e-5)
        found = find_divergence(top.log_probs, kept, kind)
        assert (found >= before - 1e-5).all() and (found <= whole + 1e-5).all()
        before = found
    assert torch.allclose(before, whole, atol=1e-4)  # 39 of 40 tokens leave a tail of one token


def test_a_hand_worked_tail() -> None:
    top = keep_top(logs(0.5, 0.2, 0.2, 0.1), 2, temperature=1.0)
    assert top.ids.tolist()[0][0] == 0
    assert top.log_probs.exp().tolist()[0] == pytest.approx([0.5, 0.2, 0.3])


class LargestTensor(TorchDispatchMode):
    """Notes the most elements of any tensor that is made."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else [made]:
            if isinstance(one, Tensor):
                self.most = max(self.most, one.numel())
        return made


@pytest.mark.parametrize("hard_weight", [0.0, 0.5])
def test_no_tensor_of_all_positions_and_all_tokens_is_made(hard_weight: float) -> None:
    positions, vocabulary = 4096, 2048
    hidden = torch.randn(positions, 8, requires_grad=True)
    weight = torch.randn(vocabulary, 8, requires_grad=True)
    taught, targets = torch.randn(positions, 8), torch.zeros(positions, dtype=torch.int64)
    with LargestTensor() as seen:
        loss, _, _ = ChunkedDistillation.apply(
            *(hidden, weight, None, targets),
            lambda start, stop: taught[start:stop] @ weight.detach().T,
            lambda logits: logits,
            Objective("jsd", hard_weight=hard_weight),
            True,
        )
        loss.backward()
    assert positions_at_once(vocabulary, hidden.device) == 512
    assert seen.most == 512 * vocabulary < positions * vocabulary / 7


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(4)
    hidden, weight = torch.randn(70, 4), torch.randn(11, 4)
    teacher, targets = torch.randn(70, 11), torch.randint(11, (70,))

    def gradients(step: int) -> list[Tensor]:
        monkeypatch.setattr(chunked_loss, "_POSITIONS", step)
        leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
        loss, _, _ = ChunkedDistillation.apply(
            *(*leaves, None, targets),
            lambda start, stop: teacher[start:stop],
            lambda logits: logits,
            Objective("reverse_kl", hard_weight=0.1),
            True,
        )
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    for one, other in zip(gradients(70), gradients(9), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("objective", "named"),
    [
        (Objective("jsd", beta=1.0), "--beta must be between 0 and 1, got 1.0"),
        (Objective("forward_kl", beta=0.3), "--beta 0.3 mixes the distributions of --divergence"),
        (Objective(temperature=0.0), "--temperature must be above 0"),
        (Objective(hard_weight=1.0), "--hard_loss_weight must be in"),
        (Objective("kl"), "--divergence must be one of forward_kl, reverse_kl, jsd, got 'kl'"),  # type: ignore[arg-type]
    ],
)
def test_objectives_that_are_none_are_refused(objective: Objective, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        check_objective(objective)
