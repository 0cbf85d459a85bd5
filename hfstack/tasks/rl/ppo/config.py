"""Define PPOConfig: the settings of online training beyond TrainingArguments.

On each process a rollout has per_device_train_batch_size * gradient_accumulation_steps *
num_mini_batches episodes. One optimizer step takes per_device_train_batch_size *
gradient_accumulation_steps of them, and each rollout gives num_ppo_epochs * num_mini_batches steps.
Accumulation therefore never changes how many updates a rollout gives.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from transformers import SchedulerType, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from hfstack.errors import ConfigError
from hfstack.tasks.rl.ppo.actor_critic import CRITICS
from hfstack.tasks.rl.ppo.advantages import ADVANTAGES
from hfstack.tasks.rl.ppo.config_checks import (
    refuse_contradictions,
    refuse_partial_rollouts,
    refuse_what_the_advantage_leaves_out,
    refuse_what_the_engine_leaves_out,
)
from hfstack.tasks.rl.ppo.formulas import KL_ESTIMATORS, RATIO_LEVELS
from hfstack.training.unread_options import PPO_UNREAD, refuse_unread

ENGINES = ("native", "generate", "vllm")
VLLM_MODES = ("colocate", "server")
OLD_LOG_PROBS = ("auto", "rollout", "recompute")

# What the policy's loss is a mean over, by the estimator: what its paper has.
LOSS_AGGREGATIONS = ("token", "sequence", "constant")
_AGGREGATION_OF = {
    "gae": "token",
    "rloo": "constant",
    "grpo": "sequence",
    "dr_grpo": "constant",
    "reinforce": "constant",
    "reinforce_pp": "token",
}

# Settings by the range that they must be in.
_AT_LEAST_ONE = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "num_mini_batches",
    "num_ppo_epochs",
    "num_generations",
    "num_generations_eval",
    "max_completion_length",
    "max_prompt_length",
    "total_episodes",
    "rollout_batch_size",
    "kl_horizon",
    "max_tokens_per_microbatch",
    "vllm_tensor_parallel_size",
    "vllm_max_model_length",
)
_NOT_NEGATIVE = (
    "learning_rate",
    "critic_learning_rate",
    "weight_decay",
    "max_grad_norm",
    "top_k",
    "kl_coef",
    "vf_coef",
    "entropy_coef",
    "critic_warmup_rollouts",
    "value_head_init_std",
    "missing_eos_penalty",
    "log_completions",
    "rollouts_ahead",
)
_ABOVE_ZERO = (
    "temperature",
    "kl_target",
    "cliprange",
    "cliprange_high",
    "cliprange_value",
    "target_kl",
    "tis_cap",
    "reward_clip",
)
_SHARES = ("gamma", "lam", "lam_critic", "top_p", "min_p", "vllm_gpu_memory_utilization")


@dataclass
class PPOConfig(TrainingArguments):
    """Settings of PPOTrainer; names follow TRL's trainers where they mean the same."""

    learning_rate: float = 3e-6
    """Peak learning rate of the policy."""
    logging_steps: float = 1
    """Optimizer steps between logs. This, save_steps and eval_steps are rounded up to whole
    rollouts.
    """
    max_grad_norm: float = 10.0
    """Norm that the gradients of policy and critic are clipped to, each apart; 0: no clipping."""

    per_device_eval_batch_size: int | None = None  # pyright: ignore
    """Completions that an evaluation generates at once on a process; None: as many as training."""
    remove_unused_columns: bool = False
    """The rewards read the other columns: must be false."""

    advantage: str = "gae"
    """Estimator of the advantages: gae (with a critic), rloo, grpo, dr_grpo (answers to one prompt
    against each other), reinforce or reinforce_pp.
    """
    num_generations: int = 1
    """Completions of each prompt in a rollout; 2 or more for rloo, grpo and dr_grpo."""
    num_generations_eval: int = 1
    """Completions of each held-out prompt in an evaluation."""

    total_episodes: int | None = None
    """Completions to train on over all processes, in place of num_train_epochs; whole rollouts."""
    num_ppo_epochs: int = 4
    """Passes over each rollout."""
    num_mini_batches: int = 1
    """Optimizer steps of one pass over a rollout, whatever the accumulation: a rollout has as many
    batches.
    """
    max_tokens_per_microbatch: int | None = None
    """Tokens, padding included, of one forward and backward pass; larger batches are split by
    length. None: no bound.
    """

    max_completion_length: int = 53
    """Tokens after which a completion is truncated."""
    max_prompt_length: int | None = None
    """Tokens that a prompt is truncated to: its end, and a bos at its beginning; None keeps all."""
    temperature: float = 1.0
    """Temperature of sampling; every log-probability is computed at the same one."""
    top_k: int = 0
    """Sample from the k likeliest tokens only; 0 for all."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that hold this share of the probability; 1 for all."""
    min_p: float | None = None
    """Sample from tokens at least this share as likely as the likeliest; None for all."""
    stop_token_ids: list[int] | None = None
    """Tokens that end a completion; None: the end of a turn and every eos of model and tokenizer.
    """
    rollout_engine: str = "native"
    """native (samples from the live weights), generate (transformers' generate) or vllm."""
    rollout_cuda_graphs: bool = True
    """On a GPU, replay the native engine's steps as CUDA graphs, captured as they are needed; where
    a model cannot be captured, a warning says why. Sharded weights generate without.
    """
    rollout_batch_size: int | None = None
    """Completions that are generated at once on a process; None: all of a rollout."""
    rollouts_ahead: int = 0
    """1 generates the next rollout in a thread while this one is trained on, by the policy before
    these updates; importance weights correct for it. 0: every rollout is the policy's own.
    """
    vllm_mode: str = "colocate"
    """colocate runs vLLM on the devices of training, server asks one that `trl vllm-serve` runs."""
    vllm_server_base_url: str | None = None
    """URL of the vLLM server, such as http://host:8000."""
    vllm_gpu_memory_utilization: float = 0.3
    """Share of a device's memory that a colocated vLLM may take."""
    vllm_tensor_parallel_size: int = 1
    """Devices that share one colocated vLLM."""
    vllm_max_model_length: int | None = None
    """Tokens of the longest prompt with its completion that a colocated vLLM makes room for; None:
    the model's context.
    """
    vllm_enable_sleep_mode: bool = False
    """Let a colocated vLLM free its memory while the policy is trained."""
    old_logprobs: str = "auto"
    """Old log-probabilities: rollout (the sampler's), recompute, or auto (the sampler's when it
    computes in fp32).
    """
    tis_cap: float | None = None
    """Cap of the importance weight old/sampler of a token; None: 2 for vllm and a rollout ahead,
    else no weight.
    """

    missing_eos_penalty: float | None = None
    """Subtracted from the score of a completion that was truncated at max_completion_length."""
    mask_truncated_completions: bool = False
    """Do not train on completions that were truncated at max_completion_length."""
    reward_weights: list[float] | None = None
    """Weight of each reward; None: 1 each."""
    reward_normalize: bool = False
    """Divide scores by the standard deviation of all scores so far."""
    reward_clip: float | None = None
    """Clip scores to plus and minus this, after they are normalised."""
    whiten_rewards: bool = False
    """Divide the token rewards of a rollout, KL penalty included, by their standard deviation."""
    kl_coef: float = 0.05
    """Weight of the KL to the starting model, in reward per nat; 0 needs no reference model."""
    kl_estimator: str = "k1"
    """Estimator of the KL of a token: k1, k2, k3 or abs."""
    kl_target: float | None = None
    """KL in nats per completion that kl_coef is adapted to reach; None keeps kl_coef."""
    kl_horizon: int = 10_000
    """Episodes over which kl_coef adapts."""
    kl_in_loss: bool | None = None
    """Add the KL to the loss instead of the reward; k1 then means k2, whose gradient is that of the
    KL. None: for grpo and dr_grpo only.
    """
    use_bias_correction_kl: bool | None = None
    """Multiply a KL by k3 in the loss by the ratio of its token, so that its gradient is that of
    the KL. None: wherever k3 is in the loss.
    """

    gamma: float = 1.0
    """Discount of a token."""
    lam: float = 0.95
    """Lambda of the advantages."""
    lam_critic: float | None = None
    """Lambda of the returns that the critic is trained on; None: lam. VC-PPO takes 1."""
    whiten_advantages: bool | None = None
    """Give the advantages of a rollout mean 0 and standard deviation 1, over all processes. None:
    for gae and reinforce_pp only.
    """

    importance_sampling_level: str = "token"
    """What the ratio of new to old probability is of: a token, a sequence (the geometric mean of
    its tokens', GSPO) or a completion (their product, RLOO's).
    """
    loss_aggregation: str | None = None
    """The policy's loss is a mean over tokens (token), over completions of their tokens' mean
    (sequence), or of their tokens' sum over max_completion_length (constant); None: by advantage.
    """
    cliprange: float = 0.2
    """Clip the ratio of new to old probability to between 1 minus and 1 plus this."""
    cliprange_high: float | None = None
    """Upper clip range; None: cliprange. DAPO takes 0.28."""
    dual_clip: float | None = None
    """Bound, above 1, on the ratio of a token with a negative advantage; None: no bound."""
    cliprange_value: float | None = 0.2
    """Clip values to this distance from the old ones; None: no clipping."""
    vf_coef: float = 0.1
    """Weight of the value loss."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus, per nat."""
    target_kl: float | None = None
    """End the updates of a rollout before the step whose minibatch finds the new policy this far,
    in nats per token, from the old one.
    """

    critic: str | None = None
    """separate (a model of its own), shared (a head on the policy), adapter (a second LoRA) or
    none (all advantages but gae); None: by advantage and policy.
    """
    critic_model: str | None = None
    """Where a separate critic starts: folder or Hub id of a reward or language model; None: a copy
    of the policy.
    """
    critic_learning_rate: float | None = None
    """Learning rate of the critic; None: learning_rate, and 10 times it for the head of a shared
    critic.
    """
    critic_warmup_rollouts: int = 0
    """First rollouts, which train the critic only; the policy's schedule begins after them."""
    value_head_init_std: float = 0.0
    """Standard deviation of a newly initialised value head; 0 makes every initial value 0. A reward
    model's head is kept.
    """
    detach_value: bool = False
    """Keep the value loss of a shared critic out of the policy's weights."""

    disable_dropout: bool = True
    """Set every dropout to 0, so that a completion has the same probability in each pass."""
    log_completions: int = 0
    """Completions of each rollout that are logged to completions.jsonl in the output directory."""

    def __post_init__(self) -> None:
        """Resolve upstream's settings, and refuse values out of range or in conflict."""
        # first, since upstream changes some of them itself
        refuse_unread(self, PPO_UNREAD)
        if self.metric_for_best_model is None and self._compares_evaluations():
            self.metric_for_best_model = "reward"

        super().__post_init__()

        for name in _AT_LEAST_ONE:
            self._check_range(name, lambda value: value >= 1, "at least 1")
        for name in _NOT_NEGATIVE:
            self._check_range(name, lambda value: 0 <= value < math.inf, "0 or above")
        for name in _ABOVE_ZERO:
            self._check_range(name, lambda value: 0 < value < math.inf, "above 0")
        for name in _SHARES:
            self._check_range(name, lambda value: 0 <= value <= 1, "between 0 and 1")
        self._check_range("cliprange", lambda value: value < 1, "below 1")
        self._check_range("top_p", lambda value: value > 0, "above 0")
        self._check_range("dual_clip", lambda value: value > 1, "above 1")

        self._check_choice("advantage", ADVANTAGES)
        self._check_choice("importance_sampling_level", RATIO_LEVELS)
        if self.loss_aggregation is not None:
            self._check_choice("loss_aggregation", LOSS_AGGREGATIONS)
        self._check_choice("kl_estimator", KL_ESTIMATORS)
        self._check_choice("rollout_engine", ENGINES)
        self._check_choice("old_logprobs", OLD_LOG_PROBS)
        self._check_choice("vllm_mode", VLLM_MODES)
        if self.critic is not None:
            self._check_choice("critic", CRITICS)

        if self.per_device_eval_batch_size is None:
            self.per_device_eval_batch_size = self.rollout_batch_size or self.rollout_size  # pyright: ignore

        refuse_contradictions(self)
        refuse_what_the_advantage_leaves_out(self)
        refuse_what_the_engine_leaves_out(self)
        self._set_what_depends_on_the_advantage()
        refuse_partial_rollouts(self)

    @property
    def importance_cap(self) -> float | None:
        """Return the cap of the importance weights, None for no weights."""
        if self.tis_cap is not None:
            return self.tis_cap
        return 2.0 if self.rollout_engine == "vllm" or self.rollouts_ahead else None

    @property
    def uses_critic(self) -> bool:
        """Return whether the advantages need values."""
        return self.advantage == "gae"

    @property
    def steps_per_rollout(self) -> int:
        """Return the optimizer steps of a rollout."""
        return self.num_ppo_epochs * self.num_mini_batches

    @property
    def rollout_size(self) -> int:
        """Return the episodes of a rollout on one process."""
        return (
            self.per_device_train_batch_size
            * self.gradient_accumulation_steps
            * self.num_mini_batches
        )

    @property
    def prompt_seed(self) -> int:
        """Return the seed of the order in which prompts and minibatches are taken."""
        return self.seed if self.data_seed is None else self.data_seed

    def whole_rollouts(self, steps: float) -> int:
        """Round optimizer steps up to whole rollouts."""
        return math.ceil(steps / self.steps_per_rollout) * self.steps_per_rollout

    def _compares_evaluations(self) -> bool:
        """Return whether anything is decided by which evaluation was the best."""
        return (
            self.load_best_model_at_end
            or self.save_strategy == SaveStrategy.BEST
            or self.lr_scheduler_type == SchedulerType.REDUCE_ON_PLATEAU
        )

    def _set_what_depends_on_the_advantage(self) -> None:
        """Set what was left to `advantage`: what the estimator's paper has."""
        if self.whiten_advantages is None:
            self.whiten_advantages = self.advantage in ("gae", "reinforce_pp")

        if self.kl_in_loss is None:
            # Dividing by a group's spread would make a KL in the reward as large as the reward.
            self.kl_in_loss = self.advantage in ("grpo", "dr_grpo") and self.kl_coef > 0

        has_k3 = self.kl_in_loss and self.kl_estimator == "k3"
        if self.use_bias_correction_kl is None:
            self.use_bias_correction_kl = has_k3
        if self.use_bias_correction_kl and not has_k3:
            raise ConfigError(
                "--use_bias_correction_kl corrects a KL by k3 in the loss, and there is none: set "
                "--kl_in_loss true and --kl_estimator k3, or drop it"
            )

        if self.loss_aggregation is None:
            by_token = self.importance_sampling_level == "token"
            self.loss_aggregation = _AGGREGATION_OF[self.advantage] if by_token else "sequence"

    def _check_range(self, name: str, accepts: Callable[[float], bool], wanted: str) -> None:
        """Refuse a number that is set and out of range."""
        value = getattr(self, name)
        if value is not None and not accepts(value):
            raise ConfigError(f"--{name} must be {wanted}, got {value}")

    def _check_choice(self, name: str, choices: tuple[str, ...]) -> None:
        """Refuse a value that is not one of the choices."""
        if getattr(self, name) not in choices:
            raise ConfigError(
                f"--{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
            )
