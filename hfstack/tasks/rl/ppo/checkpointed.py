"""Save and load policy, critic and PPO's state by Trainer's own hooks."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from transformers import Trainer

from hfstack.errors import CheckpointError, refusals_of_upstream
from hfstack.logs import get_logger
from hfstack.tasks.rl.ppo import checkpoint as ppo_checkpoint
from hfstack.tasks.rl.ppo.actor_critic import ActorCritic
from hfstack.tasks.rl.ppo.config import PPOConfig
from hfstack.tasks.rl.ppo.experience import RewardHistory
from hfstack.tasks.rl.ppo.formulas import RunningMoments

logger = get_logger(__name__)


class CheckpointedTrainer(Trainer):
    """A Trainer of an ActorCritic whose checkpoints hold the policy as a plain model.

    Its own state beside Trainer's is what a checkpoint keeps: the weight of the KL and the moments
    of the rewards.
    """

    args: PPOConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    kl_coef: float
    reward_history: RewardHistory

    @refusals_of_upstream()
    def __init__(self, **given: Any) -> None:
        """Build upstream's part; what it refuses is one line."""
        super().__init__(**given)

    def unwrapped(self) -> ActorCritic:
        """Return policy and critic without what DDP wraps around them."""
        return cast(ActorCritic, self.accelerator.unwrap_model(self.model))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, or leave it to the shards, and PPO's own numbers in any case."""
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            ppo_checkpoint.save_state(
                Path(str(output_dir or self.args.output_dir)),
                {"kl_coef": self.kl_coef, "reward_history": asdict(self.reward_history)},
            )

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        """Save the policy as a plain model or adapter, and the critic and the tokenizer."""
        if not self.args.should_save:
            return

        folder = Path(str(output_dir or self.args.output_dir))
        ppo_checkpoint.save_actor_critic(self.unwrapped(), folder, state_dict)
        cast(Any, self.processing_class).save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load what `_save` saved.

        Raises CheckpointError for what is no checkpoint of PPO, or of PPO with other settings.
        """
        folder = Path(resume_from_checkpoint)
        step = int(self.state.load_from_json(str(folder / "trainer_state.json")).global_step)
        if step % self.args.steps_per_rollout:
            raise CheckpointError(
                f"{folder} was saved after {step} optimizer steps, which are not whole rollouts of "
                f"{self.args.steps_per_rollout}: keep --num_ppo_epochs and --num_mini_batches as "
                "they were"
            )

        self._load_state(folder)

        # The start was evaluated by the first run; here its curve would have one point more.
        self.args.eval_on_start = False

        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return

        ppo_checkpoint.load_actor_critic(self.unwrapped(), folder)

    def _load_best_model(self) -> None:
        """Load policy and critic of the best evaluation, and PPO's state at that time."""
        folder = Path(cast(str, self.state.best_model_checkpoint))
        logger.info("loading %s, the best by %s", folder, self.args.metric_for_best_model)
        if self.is_fsdp_enabled:
            super()._load_best_model()
        else:
            ppo_checkpoint.load_actor_critic(self.unwrapped(), folder)
        self._load_state(folder)

    def _load_state(self, folder: Path) -> None:
        """Load PPO's own numbers of a checkpoint."""
        state = ppo_checkpoint.load_state(folder)
        self.kl_coef = float(state["kl_coef"])
        moments = {name: RunningMoments(**kept) for name, kept in state["reward_history"].items()}
        self.reward_history = RewardHistory(**moments)
