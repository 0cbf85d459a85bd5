"""Read a recipe's settings as a workload: which models take part, in which steps.

Nothing is downloaded beyond a config.json and nothing is allocated.
"""

import dataclasses
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, TrainingArguments
from trl import DPOConfig, KTOConfig, ModelConfig, RewardConfig, SFTConfig

from hfstack.errors import CheckpointError, ConfigError
from hfstack.models.context import context_length
from hfstack.models.loading import find_architecture
from hfstack.planning.memory import (
    PeakMemory,
    StepTask,
    TrainingStep,
    forward_flops,
    peak_memory,
    trained_parameters,
)
from hfstack.tasks.rewards.reward_model import REWARD_BATCH_SIZE
from hfstack.tasks.rl.ppo.config import PPOConfig

_TASKS: dict[str, StepTask] = {
    "pretrain_clm": "causal_lm",
    "pretrain_mlm": "masked_lm",
    "classify": "sequence_classification",
    "tag": "token_classification",
    "answer": "question_answering",
    "seq2seq": "seq2seq",
}
_ADAM_BYTES = 8  # two fp32 moments of each trained parameter

# Of a token: its id, and log-probabilities, value, reward, advantage and return in fp32.
_ROLLOUT_BYTES = 8 + 6 * 4


@dataclass
class WorkArgs:
    """A recipe to plan for."""

    recipe: str | None = None
    """Its name, or the path of a file of your own."""
    recipe_options: str = ""
    """Its flags, as one string; the YAML beside the recipe is read first."""
    train_rows: int | None = None
    """Rows of the training data (blocks, where the recipe packs), for the time that epochs take."""
    prompt_tokens: int = 64
    """Tokens of a prompt, for recipes that generate answers."""


@dataclass(frozen=True)
class Part:
    """One model that takes part in a step."""

    name: str
    config: PreTrainedConfig
    step: TrainingStep
    passes: float = 1.0
    """Times that each row goes through it in an optimizer step."""
    shares_weights: bool = False
    """It is the policy without its adapter, so it holds no weights of its own."""


@dataclass(frozen=True)
class Generation:
    """Completions that are generated before they are trained on."""

    rows: int
    """At once, by one process."""
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Workload:
    """An optimizer step of a recipe on one process, and how many there are."""

    recipe: str
    parts: tuple[Part, ...]
    """The first is the model that is saved."""
    processes: int
    steps: int | None
    """Optimizer steps; None when they follow from the rows of a dataset that was not given."""
    kept_checkpoints: int | None
    """None keeps all."""
    save_every: float
    """Optimizer steps between checkpoints; infinity for none."""
    rows_per_example: int = 1
    """Rows of a micro-batch for each one of --per_device_train_batch_size: 2 where both answers of
    a pair go through at once."""
    generation: Generation | None = None
    rollouts_per_step: float = 0.0
    """Rollouts for each optimizer step."""
    resident_factor: float = 1.0
    """Resident bytes of the process for each byte that its tensors hold."""
    context: int = 0
    """Bytes of a GPU's memory that a process takes before its first tensor; its allocator rounds
    blocks then."""

    @property
    def trained(self) -> Part:
        """Return the model that is saved."""
        return self.parts[0]

    @property
    def tokens_per_step(self) -> int:
        """Return the tokens of an optimizer step of all processes, with padding."""
        step = self.trained.step
        return step.batch_size * step.sequence_length * step.accumulation * self.processes

    def varied(self, **changes: Any) -> "Workload":
        """Return the workload with other settings in each trained part."""
        parts = tuple(
            replace(p, step=replace(p.step, **changes)) if p.step.trains else p for p in self.parts
        )
        return replace(self, parts=parts)


def read_workload(
    recipe: str, settings: tuple[Any, ...], *, rows: int | None, prompt_tokens: int
) -> Workload:
    """Return the workload of a recipe's settings.

    Args:
        recipe: its name, which decides the task where the settings leave it open.
        settings: the dataclasses of its `main`, read.
        rows: of the training data, when epochs decide how long it trains; for packed recipes,
            blocks.
        prompt_tokens: of a prompt, for recipes that generate completions.

    Raises:
        ConfigError: the recipe trains nothing, or names no model.
        CheckpointError: the model has no config.json here or in the cache.
    """
    # Settings by name, whichever dataclass holds them.
    values: dict[str, Any] = {}
    for part in settings:
        values |= {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    arguments = next((part for part in settings if isinstance(part, TrainingArguments)), None)
    model = next((part for part in settings if isinstance(part, ModelConfig)), None)
    if arguments is None or model is None:
        raise ConfigError(
            f"--recipe {recipe} trains no model; plan needs one that does, such as sft or "
            "pretrain_clm"
        )

    config = _load_config(model.model_name_or_path, model.model_revision or "main")
    step = _training_step(arguments, model, fused_loss=bool(values.get("fused_loss", False)))
    parts, generation, share = _list_parts(
        recipe, arguments, values, config, step=step, prompt_tokens=prompt_tokens
    )

    # A share of the steps, as upstream allows it, is a number below 1.
    saves = arguments.save_strategy != "no" and not isinstance(arguments.save_steps, str)
    return Workload(
        recipe=recipe,
        parts=parts,
        processes=arguments.world_size,
        steps=_count_steps(arguments, rows),
        kept_checkpoints=arguments.save_total_limit,
        save_every=float(arguments.save_steps) if saves else math.inf,
        rows_per_example=max(1, parts[0].step.batch_size // arguments.per_device_train_batch_size),
        generation=generation,
        rollouts_per_step=share,
    )


def _training_step(
    arguments: TrainingArguments, model: ModelConfig, *, fused_loss: bool
) -> TrainingStep:
    """Return the step of the settings; its rows and their length depend on the recipe."""
    half = model.dtype in ("bfloat16", torch.bfloat16)
    checkpointing: Any = arguments
    return TrainingStep(
        batch_size=arguments.per_device_train_batch_size,
        sequence_length=1,
        bf16=bool(arguments.bf16),
        weight_dtype=torch.bfloat16 if half else torch.float32,
        activation_checkpointing=bool(
            checkpointing.activation_checkpointing or checkpointing.gradient_checkpointing
        ),
        accumulation=arguments.gradient_accumulation_steps,
        fused_loss=fused_loss,
        lora_rank=model.lora_r if model.use_peft else 0,
        lora_targets=_read_targets(model.lora_target_modules),
    )


def _read_targets(targets: Any) -> str | tuple[str, ...]:
    """Return the layers that an adapter changes; all linear ones where none are named."""
    named = [targets] if isinstance(targets, str) else list(targets or ())
    return "all-linear" if named in ([], ["all-linear"]) else tuple(named)


def _load_config(name: str | None, revision: str = "main") -> PreTrainedConfig:
    """Read the config.json of a model; an architecture keeps its file's vocabulary."""
    if name is None:
        raise ConfigError(
            "the recipe's settings name no model; add --model_name_or_path to --recipe_options"
        )
    try:
        return AutoConfig.from_pretrained(
            find_architecture(name) or name, revision=revision, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        cause = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{name} has no config.json that can be read: {cause}") from error


def _list_parts(
    recipe: str,
    arguments: Any,
    values: dict[str, Any],
    config: PreTrainedConfig,
    *,
    step: TrainingStep,
    prompt_tokens: int,
) -> tuple[tuple[Part, ...], Generation | None, float]:
    """Return the models of a step, what is generated before, and its share of that."""
    step = replace(step, sequence_length=_row_length(values, config))
    match arguments:
        case PPOConfig():
            rewarded = (values.get("reward_model"), values.get("reward_dtype", "float32"))
            return _ppo_parts(arguments, config, step, prompt_tokens, rewarded)

        case DPOConfig() | KTOConfig():
            # Chosen and rejected answers of a pair go through in one batch.
            rows_per_example = 2 if isinstance(arguments, DPOConfig) else 1
            step = replace(step, batch_size=rows_per_example * step.batch_size)
            parts = (Part("policy", config, step), _reference_part(config, step, 1.0))
            return (parts[:1] if arguments.precompute_ref_log_probs else parts), None, 0.0
        case RewardConfig():
            step = replace(step, batch_size=2 * step.batch_size, task="sequence_classification")
            return (Part("reward model", _one_score(config), step),), None, 0.0

        case SFTConfig():
            return (Part("model", config, step),), None, 0.0
    if recipe not in _TASKS:
        raise ConfigError(
            f"--recipe {recipe}: plan does not know its task; it knows {', '.join(_TASKS)}, "
            "and TRL's"
        )
    return (Part("model", config, replace(step, task=_TASKS[recipe])),), None, 0.0


def _ppo_parts(
    arguments: PPOConfig,
    config: PreTrainedConfig,
    step: TrainingStep,
    prompt_tokens: int,
    rewarded: tuple[str | None, str],
) -> tuple[tuple[Part, ...], Generation, float]:
    """Return the models of PPO, RLOO or GRPO; a rollout serves several steps.

    Args:
        arguments: of the recipe.
        config: of the policy.
        step: of the policy.
        prompt_tokens: of a prompt.
        rewarded: the reward model, if any, and the number type that it is loaded in.
    """
    length = prompt_tokens + arguments.max_completion_length
    step = replace(step, sequence_length=length)
    if arguments.max_tokens_per_microbatch is not None:
        rows = max(1, min(step.batch_size, arguments.max_tokens_per_microbatch // length))
        accumulation = math.ceil(step.batch_size / rows) * step.accumulation
        step = replace(step, batch_size=rows, accumulation=accumulation)

    share = 1 / arguments.steps_per_rollout
    # The frozen models score each row once a rollout, whatever number of steps it serves.
    frozen_passes = arguments.rollout_size / (step.batch_size * step.accumulation) * share

    parts = [Part("policy", config, step)]
    own_default = "adapter" if step.lora_rank else "separate"
    critic = (arguments.critic or own_default) if arguments.uses_critic else "none"
    if critic in ("adapter", "separate"):
        # An adapter's backward pass is one more through the same weights.
        own = config if arguments.critic_model is None else _load_config(arguments.critic_model)
        own_step = step if critic == "adapter" else replace(step, lora_rank=0)
        parts.append(Part("critic", own, own_step, shares_weights=critic == "adapter"))
    if arguments.kl_coef:
        parts.append(_reference_part(config, step, frozen_passes))
    if arguments.rollouts_ahead:
        # a copy that only generates
        copied = _reference_part(config, step, 0.0)
        parts.append(replace(copied, name="policy of the rollout ahead"))
    parts += _reward_parts(*rewarded, step, frozen_passes)

    rows = arguments.rollout_batch_size or arguments.rollout_size
    generation = Generation(rows, prompt_tokens, arguments.max_completion_length)
    return tuple(parts), generation, share


def _reference_part(config: PreTrainedConfig, step: TrainingStep, passes: float) -> Part:
    """Return the policy as it started: a copy, or the policy with its adapter off."""
    frozen = replace(step, trains=False, lora_rank=0, fused_loss=False)
    return Part("reference", config, frozen, passes, shares_weights=bool(step.lora_rank))


def _reward_parts(
    reward_model: str | None, dtype: str, step: TrainingStep, passes: float
) -> list[Part]:
    """Return the reward model, unless rewards are functions or come from an endpoint.

    It computes in its own number type, whatever the policy trains in.
    """
    if not reward_model or reward_model.startswith(("http://", "https://")):
        return []
    config = _one_score(_load_config(reward_model))
    saved: Any = config.dtype or torch.float32
    weight_dtype = saved if dtype == "auto" else getattr(torch, dtype)
    frozen = replace(
        step,
        batch_size=REWARD_BATCH_SIZE,
        trains=False,
        lora_rank=0,
        fused_loss=False,
        bf16=False,
        weight_dtype=weight_dtype,
        task="sequence_classification",
    )
    passes *= step.batch_size / REWARD_BATCH_SIZE
    return [Part("reward model", config, frozen, passes)]


def _one_score(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the config of a classifier with one output."""
    config = type(config).from_dict(config.to_dict() | {"num_labels": 1})
    config.pad_token_id = config.pad_token_id or 0  # by which it finds the end of a row
    return config


def _row_length(values: dict[str, Any], config: PreTrainedConfig) -> int:
    """Return the tokens of a row: what the settings say, or the model's context."""
    longest = context_length(config)
    asked = (
        values.get("block_size")
        or values.get("max_source_length")
        or values.get("max_length")
        or longest
    )
    if asked is None:
        raise ConfigError(
            "nothing bounds the length of a row; set --max_length or --block_size in "
            "--recipe_options"
        )
    return min(int(asked), longest or int(asked))


def _count_steps(arguments: TrainingArguments, rows: int | None) -> int | None:
    """Return the optimizer steps of the whole run."""
    if arguments.max_steps > 0:
        return arguments.max_steps
    if rows is None:
        return None

    batches = math.ceil(rows / (arguments.per_device_train_batch_size * arguments.world_size))
    steps_per_epoch = max(1, batches // arguments.gradient_accumulation_steps)
    return math.ceil(arguments.num_train_epochs * steps_per_epoch)


@dataclass(frozen=True)
class Needs:
    """What a workload takes; bytes are of one process."""

    memory: dict[str, PeakMemory]
    """By part. The activations of frozen parts are not held while the trained ones train."""
    generation: int
    """KV cache of the completions that are generated at once, and the rollout that is kept."""
    peak: int
    """The highest sum that is held at one moment."""
    flops_per_step: float
    """Of an optimizer step, all processes together, with what is generated for it."""
    checkpoint: int
    """Bytes of a checkpoint: the saved weights and the optimizer."""
    allocator: int = 0
    """Bytes of `peak` that no tensor holds: freed blocks that a CPU's allocator keeps, or what a
    GPU's rounds blocks up by, and, once it was measured, scratch space in kernels."""
    context: int = 0
    """Bytes of `peak` that the process takes on a GPU before its first tensor."""
    measured: bool = False
    """Return whether `peak` and `allocator` are what real steps took."""


def assess(workload: Workload) -> Needs:
    """Return what the workload takes.

    Raises:
        ConfigError: there is no model of that architecture for the task.
    """
    try:
        memory = {part.name: _part_memory(part) for part in workload.parts}
    except ValueError as error:
        raise ConfigError(f"{workload.recipe}: {' '.join(str(error).split())[:200]}") from error

    # Training, scoring and generation take turns: only the largest of them is held at one moment.
    held = sum(m.weights + m.gradients + m.optimizer for m in memory.values())
    trained = sum(memory[part.name].activations for part in workload.parts if part.step.trains)
    frozen = [memory[part.name].activations for part in workload.parts if not part.step.trains]
    generation, flops = 0, sum(_step_flops(part) for part in workload.parts)
    if workload.generation is not None:
        generation = _generation_bytes(workload.trained, workload.generation)
        flops_per_rollout = _generation_flops(workload.trained, workload.generation)
        flops += workload.rollouts_per_step * flops_per_rollout
    in_tensors = held + max(trained, generation, *frozen)
    rounding = sum(m.rounding for m in memory.values()) if workload.context else 0
    allocated = round(in_tensors * workload.resident_factor) + rounding

    return Needs(
        memory=memory,
        generation=generation,
        peak=allocated + workload.context,
        allocator=allocated - in_tensors,
        context=workload.context,
        flops_per_step=flops * workload.processes,
        checkpoint=_checkpoint_bytes(workload.trained),
    )


def _part_memory(part: Part) -> PeakMemory:
    """Return what one model holds at the peak of its step."""
    memory = peak_memory(part.config, part.step)
    return replace(memory, weights=0) if part.shares_weights else memory


def _checkpoint_bytes(part: Part) -> int:
    """Return the bytes of the saved weights and the optimizer's moments."""
    weights, trained = trained_parameters(part.config, part.step)
    saved = trained if part.step.lora_rank else weights
    return saved * part.step.weight_dtype.itemsize + trained * _ADAM_BYTES


def _step_flops(part: Part) -> float:
    """Return the FLOPs of one process in an optimizer step.

    A frozen weight has no gradient, and a recomputed pass is one more.
    """
    forward = forward_flops(part.config, part.step) * part.step.accumulation * part.passes
    if not part.step.trains:
        return forward
    times = 2 if part.step.lora_rank else 3
    return forward * (times + (1 if part.step.activation_checkpointing else 0))


def _generation_flops(part: Part, generation: Generation) -> float:
    """Return the FLOPs of generating one rollout on one process."""
    tokens = generation.prompt_tokens + generation.completion_tokens
    step = replace(part.step, batch_size=1, sequence_length=tokens, trains=False, lora_rank=0)
    return forward_flops(part.config, step) * generation.rows


def _generation_bytes(part: Part, generation: Generation) -> int:
    """Return the bytes of all keys and values, and of the rollout itself."""
    config: Any = part.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    bytes_each = 2 if part.step.bf16 else part.step.weight_dtype.itemsize

    tokens = generation.rows * (generation.prompt_tokens + generation.completion_tokens)
    cache_per_token = 2 * config.num_hidden_layers * heads * width * bytes_each
    return (cache_per_token + _ROLLOUT_BYTES) * tokens
