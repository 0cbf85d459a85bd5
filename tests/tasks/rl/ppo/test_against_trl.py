"""Our estimators against TRL's RLOO and GRPO on the same tokens and rewards: KL, loss and gradient.

Policy, reference and the policy that sampled all differ, so that ratios are not 1 and some are
clipped. TRL's trainers compute everything themselves but what is sampled.
"""

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from hfstack.tasks.rl.ppo.engines.interface import Rollout
from tests.tiny_ppo import FixedEngine, prompts, trainer

GROUP, EOS = 4, 0
# nats by which the probabilities of a token are apart from those of an untrained model
SAMPLER = -math.log(300)
BETA = 0.3
ROWS = 2 * GROUP


def worth(prompts: list[Any], completions: list[Any], completion_ids: list[Any], **_: Any) -> Any:
    """A number between 0 and 2 that depends on the tokens alone."""
    return [sum(ids) % 11 / 5 for ids in completion_ids]


class EndingEngine(FixedEngine):
    """Ends what is finished with the eos, and samples by probabilities of its own."""

    def generate(self, actor_critic: Any, prompt_ids: Any) -> Rollout:
        rollout = super().generate(actor_critic, prompt_ids)
        for tokens in itertools.compress(rollout.completion_ids, rollout.finished.tolist()):
            tokens[-1] = EOS
        return rollout


def moved(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """A copy whose weights are a little elsewhere."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix("policy."): parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def theirs(
    kind: type, folder: Path, tokenizer: Any, sampled: PreTrainedModel, **settings: Any
) -> tuple[float, float, dict[str, torch.Tensor]]:
    """KL, loss and gradient of a TRL trainer."""
    config = RLOOConfig if kind is RLOOTrainer else GRPOConfig
    rows = prompts(2)
    made = kind(
        model=copy.deepcopy(sampled),
        reward_funcs=worth,
        args=config(
            output_dir=str(folder),
            per_device_train_batch_size=ROWS,
            num_generations=GROUP,
            num_iterations=2,  # the policy that sampled is another one
            max_completion_length=6,
            beta=BETA,
            temperature=1.0,
            use_cpu=True,
            bf16=False,
            report_to="none",
            **settings,
        ),
        train_dataset=rows,
        processing_class=copy.deepcopy(tokenizer),
    )
    made.ref_model.load_state_dict(moved(sampled, 1).state_dict())
    made.current_gradient_accumulation_steps = 1

    def sample(prompt_ids: list[list[int]], *_: Any) -> Any:
        rollout = EndingEngine(SAMPLER).generate(None, prompt_ids)
        ids = [row.tolist() for row in rollout.completion_ids]
        assert rollout.log_probs is not None
        log_probs = [row.tolist() for row in rollout.log_probs]
        return ids if kind is RLOOTrainer else (ids, log_probs)

    made._generate_single_turn = sample
    # vLLM's samples are those of another policy
    made.use_vllm = "vllm_importance_sampling_mode" in settings
    made.model.train()
    batch = made._generate_and_score_completions([row for row in rows for _ in range(GROUP)])
    made.compute_loss(made.model, batch)
    kl = made._metrics["train"]["kl"][-1]  # before the policy moves

    made.model.load_state_dict(moved(sampled, 2).state_dict())
    loss = made.compute_loss(made.model, batch)
    loss.backward()
    return kl, loss.item(), gradients(made.model)


def ours(
    folder: Path, tokenizer: Any, sampled: PreTrainedModel, **settings: Any
) -> tuple[dict[str, float], float, dict[str, torch.Tensor]]:
    """The metrics of the rollout, loss and gradient of our trainer."""
    made = trainer(
        folder,
        tokenizer,
        copy.deepcopy(sampled),
        build={
            "engine": EndingEngine(SAMPLER),
            "reward_funcs": worth,
            "reference_model": moved(sampled, 1),
            "train_dataset": prompts(2),
        },
        per_device_train_batch_size=ROWS,
        num_generations=GROUP,
        num_mini_batches=1,
        num_ppo_epochs=1,
        total_episodes=ROWS,
        max_completion_length=6,
        kl_coef=BETA,
        **settings,
    )
    (batch,) = made.get_train_dataloader()
    made.model.policy.load_state_dict(moved(sampled, 2).state_dict())
    loss = made.training_step(made.model, batch)
    return made.training_metrics.rollouts[0], loss.item(), gradients(made.model)


K3 = {"kl_estimator": "k3"}  # TRL's GRPO has it in the loss


@pytest.mark.parametrize(
    ("kind", "their_settings", "our_settings"),
    [
        (RLOOTrainer, {}, {"advantage": "rloo", "importance_sampling_level": "completion"}),
        (
            RLOOTrainer,
            {"normalize_advantages": False, "epsilon_high": 0.4, "reward_clip_range": (-1, 1)},
            {
                "advantage": "rloo",
                "importance_sampling_level": "completion",
                "cliprange_high": 0.4,
                "reward_clip": 1.0,
            },
        ),
        (GRPOTrainer, {"loss_type": "grpo"}, {"advantage": "grpo", **K3}),
        (
            GRPOTrainer,
            {
                "loss_type": "grpo",
                "vllm_importance_sampling_mode": "token_truncate",
                "vllm_importance_sampling_clip_max": 1.01,
            },
            {"advantage": "grpo", "tis_cap": 1.01, **K3},
        ),
        (
            GRPOTrainer,
            {"loss_type": "dr_grpo", "scale_rewards": "none", "use_bias_correction_kl": False},
            {"advantage": "dr_grpo", "use_bias_correction_kl": False, **K3},
        ),
        (
            GRPOTrainer,
            {"loss_type": "dapo", "epsilon_high": 0.28, "delta": 1.4},
            {
                "advantage": "grpo",
                "loss_aggregation": "token",
                "cliprange_high": 0.28,
                "dual_clip": 1.4,
                **K3,
            },
        ),
        (
            GRPOTrainer,
            {"loss_type": "dapo", "mask_truncated_completions": True},
            {
                "advantage": "grpo",
                "loss_aggregation": "token",
                "mask_truncated_completions": True,
                **K3,
            },
        ),
        (
            GRPOTrainer,
            {
                "loss_type": "grpo",
                "importance_sampling_level": "sequence",
                "entropy_coef": 0.1,
                "use_bias_correction_kl": False,  # theirs is by the ratio of the sequence
            },
            {
                "advantage": "grpo",
                "importance_sampling_level": "sequence",
                "use_bias_correction_kl": False,
                "entropy_coef": 0.1,
                **K3,
            },
        ),
    ],
    ids=[
        "rloo",
        "rloo-clip-higher",
        "grpo",
        "grpo-truncated-importance",
        "dr_grpo",
        "dapo-dual-clip",
        "dapo-without-truncated",
        "gspo-entropy",
    ],
)
def test_kl_loss_and_gradient_are_those_of_trl(
    kind: type,
    their_settings: dict[str, Any],
    our_settings: dict[str, Any],
    tiny_llama: Path,
    tiny_tokenizer: Any,
    tmp_path: Path,
):
    sampled = moved(AutoModelForCausalLM.from_pretrained(tiny_llama), 0)
    their_kl, their_loss, their_gradients = theirs(
        kind, tmp_path / "theirs", tiny_tokenizer, sampled, **their_settings
    )
    metrics, our_loss, our_gradients = ours(
        tmp_path / "ours", tiny_tokenizer, sampled, **our_settings
    )
    our_kl = metrics["kl" if kind is RLOOTrainer else "kl_k3"]
    if "mask_truncated_completions" not in our_settings:  # theirs is of what is trained on
        assert our_kl == pytest.approx(their_kl, abs=1e-5) and abs(our_kl) > 1e-3
    if "tis_cap" in our_settings:
        assert abs(metrics["sampler/importance"] - 1) > 1e-2
    assert our_loss == pytest.approx(their_loss, abs=1e-5) and abs(our_loss) > 5e-4

    assert our_gradients.keys() == their_gradients.keys()
    for name, gradient in their_gradients.items():
        assert torch.allclose(our_gradients[name], gradient, atol=1e-5), name
    assert max(float(gradient.abs().max()) for gradient in their_gradients.values()) > 1e-2
