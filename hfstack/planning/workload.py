"""What a recipe's settings amount to: which models take part, in which steps, and what they hold, compute and write.

Nothing is downloaded beyond a config.json and nothing is allocated.
"""

import dataclasses
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, TrainingArguments
from trl import DPOConfig, GRPOConfig, KTOConfig, ModelConfig, RewardConfig, RLOOConfig, SFTConfig

from hfstack.errors import CheckpointError, ConfigError
from hfstack.models.context import context_length
from hfstack.models.heap import HeapRules
from hfstack.models.loading import find_architecture
from hfstack.planning.memory import (
    PeakMemory,
    Task,
    TrainingStep,
    forward_flops,
    peak_memory,
    trained_parameters,
)
from hfstack.tasks.rl.ppo.config import PPOConfig

_TASKS: dict[str, Task] = {
    "pretrain_clm": "causal_lm",
    "pretrain_mlm": "masked_lm",
    "classify": "sequence_classification",
    "tag": "token_classification",
    "answer": "question_answering",
    "seq2seq": "seq2seq",
}
_ADAM_BYTES = 8  # two fp32 moments of each trained parameter
_ROLLOUT_BYTES = (
    8 + 6 * 4
)  # of a token: its id, and log-probabilities, value, reward, advantage and return in fp32


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
    """Tokens of a prompt, for recipes that write answers."""


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
class Writing:
    """Completions that are written before they are learnt from."""

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
    """Rows of a micro-batch for each one of --per_device_train_batch_size: 2 where a pair goes through at once."""
    writing: Writing | None = None
    written_share: float = 0.0
    """Rollouts for each optimizer step."""
    heap: HeapRules | None = None
    """Of the process, where it trains on a CPU whose C library's heap can be simulated."""

    @property
    def trained(self) -> Part:
        """The model that is saved."""
        return self.parts[0]

    @property
    def tokens_per_step(self) -> int:
        """Tokens that all processes train on in an optimizer step, padding included."""
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
        rows: of the training data, when epochs decide how long it trains; for packed recipes, blocks.
        prompt_tokens: of a prompt, for recipes that write completions.

    Raises:
        ConfigError: the recipe trains nothing, or its model is not said.
        CheckpointError: the model has no config.json here or in the cache.
    """
    values: dict[str, Any] = {}
    for part in settings:
        values |= {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
    arguments = next((part for part in settings if isinstance(part, TrainingArguments)), None)
    model = next((part for part in settings if isinstance(part, ModelConfig)), None)
    if arguments is None or model is None:
        raise ConfigError(
            f"--recipe {recipe} trains no model; plan needs one that does, such as sft or pretrain_clm"
        )
    config = _read_config(model.model_name_or_path, model.model_revision or "main")
    step = TrainingStep(
        batch_size=arguments.per_device_train_batch_size,
        sequence_length=1,
        bf16=bool(arguments.bf16),
        weight_dtype=torch.bfloat16
        if model.dtype in ("bfloat16", torch.bfloat16)
        else torch.float32,
        activation_checkpointing=bool(
            arguments.activation_checkpointing or arguments.gradient_checkpointing
        ),
        accumulation=arguments.gradient_accumulation_steps,
        fused_loss=bool(values.get("fused_loss", False)),
        lora_rank=model.lora_r if model.use_peft else 0,
    )
    parts, writing, share = _parts(
        recipe, arguments, values, config, step=step, prompt_tokens=prompt_tokens
    )
    saves = arguments.save_strategy != "no" and not isinstance(arguments.save_steps, str)
    return Workload(
        recipe=recipe,
        parts=parts,
        processes=arguments.world_size,
        steps=_steps(arguments, rows),
        kept_checkpoints=arguments.save_total_limit,
        save_every=float(arguments.save_steps) if saves else math.inf,
        rows_per_example=max(1, parts[0].step.batch_size // arguments.per_device_train_batch_size),
        writing=writing,
        written_share=share,
    )


def _read_config(name: str | None, revision: str = "main") -> PreTrainedConfig:
    """Read the config.json of a model; an architecture keeps the vocabulary that its file states."""
    if name is None:
        raise ConfigError(
            "the recipe's settings name no model; add --model_name_or_path to --recipe_options"
        )
    try:
        return AutoConfig.from_pretrained(find_architecture(name) or name, revision=revision)
    except (OSError, ValueError) as error:
        cause = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{name} has no config.json that can be read: {cause}") from error


def _parts(
    recipe: str,
    arguments: Any,
    values: dict[str, Any],
    config: PreTrainedConfig,
    *,
    step: TrainingStep,
    prompt_tokens: int,
) -> tuple[tuple[Part, ...], Writing | None, float]:
    """The models of a step, what is written before it, and how many rollouts a step takes, by the trainer."""
    step = replace(step, sequence_length=_length(values, config))
    match arguments:
        case PPOConfig():
            return _ppo(arguments, config, step, prompt_tokens, values.get("reward_model"))
        case RLOOConfig() | GRPOConfig():
            return _groups(arguments, config, step, prompt_tokens, values.get("reward_model"))
        case DPOConfig() | KTOConfig():
            pairs = (
                2 if isinstance(arguments, DPOConfig) else 1
            )  # chosen and rejected go through in one batch
            step = replace(step, batch_size=pairs * step.batch_size)
            parts = (Part("policy", config, step), _reference(config, step, 1.0))
            return (parts[:1] if arguments.precompute_ref_log_probs else parts), None, 0.0
        case RewardConfig():
            step = replace(step, batch_size=2 * step.batch_size, task="sequence_classification")
            return (Part("reward model", _one_score(config), step),), None, 0.0
        case SFTConfig():
            return (Part("model", config, step),), None, 0.0
    if recipe not in _TASKS:
        raise ConfigError(
            f"--recipe {recipe}: plan does not know its task; it knows {', '.join(_TASKS)}, and TRL's"
        )
    return (Part("model", config, replace(step, task=_TASKS[recipe])),), None, 0.0


def _ppo(
    arguments: PPOConfig,
    config: PreTrainedConfig,
    step: TrainingStep,
    prompt_tokens: int,
    reward_model: str | None,
) -> tuple[tuple[Part, ...], Writing, float]:
    """Policy, critic, reference and reward model; a rollout serves several steps."""
    length = prompt_tokens + arguments.max_completion_length
    step = replace(step, sequence_length=length)
    if arguments.max_tokens_per_microbatch is not None:
        rows = max(1, min(step.batch_size, arguments.max_tokens_per_microbatch // length))
        step = replace(
            step,
            batch_size=rows,
            accumulation=math.ceil(step.batch_size / rows) * step.accumulation,
        )
    share = 1 / arguments.steps_per_rollout
    scored = (
        arguments.rollout_size / (step.batch_size * step.accumulation) * share
    )  # passes of the frozen models
    parts = [Part("policy", config, step)]
    critic = arguments.critic or ("adapter" if step.lora_rank else "separate")
    if critic != "shared":  # an adapter's backward pass is one more through the same weights
        own = config if arguments.critic_model is None else _read_config(arguments.critic_model)
        own_step = step if critic == "adapter" else replace(step, lora_rank=0)
        parts.append(Part("critic", own, own_step, shares_weights=critic == "adapter"))
    if arguments.kl_coef:
        parts.append(_reference(config, step, scored))
    parts += _judge(reward_model, step, scored)
    rows = arguments.rollout_batch_size or arguments.rollout_size
    return tuple(parts), Writing(rows, prompt_tokens, arguments.max_completion_length), share


def _groups(
    arguments: Any,
    config: PreTrainedConfig,
    step: TrainingStep,
    prompt_tokens: int,
    reward_model: str | None,
) -> tuple[tuple[Part, ...], Writing, float]:
    """RLOO and GRPO: no critic; a generation batch serves `num_iterations` passes."""
    step = replace(step, sequence_length=prompt_tokens + arguments.max_completion_length)
    share = step.accumulation / (arguments.steps_per_generation * arguments.num_iterations)
    parts = [Part("policy", config, step)]
    if arguments.beta:
        parts.append(_reference(config, step, 1 / arguments.num_iterations))
    parts += _judge(reward_model, step, 1 / arguments.num_iterations)
    rows = arguments.per_device_train_batch_size * arguments.steps_per_generation
    return tuple(parts), Writing(rows, prompt_tokens, arguments.max_completion_length), share


def _reference(config: PreTrainedConfig, step: TrainingStep, passes: float) -> Part:
    """The frozen start of the policy: a copy, or the policy with its adapter switched off."""
    frozen = replace(step, trains=False, lora_rank=0, fused_loss=False)
    return Part("reference", config, frozen, passes, shares_weights=bool(step.lora_rank))


def _judge(reward_model: str | None, step: TrainingStep, passes: float) -> list[Part]:
    """The reward model, unless rewards are functions or come from an endpoint."""
    if not reward_model or reward_model.startswith(("http://", "https://")):
        return []
    config = _one_score(_read_config(reward_model))
    frozen = replace(
        step, trains=False, lora_rank=0, fused_loss=False, task="sequence_classification"
    )
    return [Part("reward model", config, frozen, passes)]


def _one_score(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of a classifier with one output; it needs a padding token to find the end of a row by."""
    config = type(config).from_dict(config.to_dict() | {"num_labels": 1})
    config.pad_token_id = config.pad_token_id or 0
    return config


def _length(values: dict[str, Any], config: PreTrainedConfig) -> int:
    """Tokens of a row: what the settings say, or the model's context."""
    longest = context_length(config)
    asked = (
        values.get("block_size")
        or values.get("max_source_length")
        or values.get("max_length")
        or longest
    )
    if asked is None:
        raise ConfigError(
            "nothing bounds the length of a row; set --max_length or --block_size in --recipe_options"
        )
    return min(int(asked), longest or int(asked))


def _steps(arguments: TrainingArguments, rows: int | None) -> int | None:
    """Optimizer steps of the whole run."""
    if arguments.max_steps > 0:
        return arguments.max_steps
    if rows is None:
        return None
    batches = math.ceil(rows / (arguments.per_device_train_batch_size * arguments.world_size))
    return math.ceil(
        arguments.num_train_epochs * max(1, batches // arguments.gradient_accumulation_steps)
    )


@dataclass(frozen=True)
class Needs:
    """What a workload takes; bytes are of one process."""

    memory: dict[str, PeakMemory]
    """By part. The activations of frozen parts are not held while the trained ones train."""
    writing: int
    """KV cache of the completions that are written at once, and the rollout that is kept."""
    peak: int
    """The highest sum that is held at one moment."""
    flops_per_step: float
    """Of an optimizer step, all processes together, with what is written for it."""
    checkpoint: int
    """Bytes of a checkpoint: the saved weights and the optimizer."""
    allocator: int = 0
    """Bytes of `peak` that no tensor holds: freed blocks that a CPU's allocator keeps, and, once it was measured,
    scratch space in kernels."""
    measured: bool = False
    """Whether `peak` and `allocator` are what real steps took."""


def assess(workload: Workload) -> Needs:
    """Return what the workload takes.

    Raises:
        ConfigError: there is no model of that architecture for the task.
    """
    try:
        memory = {part.name: _part_memory(part, workload.heap) for part in workload.parts}
    except ValueError as error:
        raise ConfigError(f"{workload.recipe}: {' '.join(str(error).split())[:200]}") from error
    held = sum(m.weights + m.gradients + m.optimizer for m in memory.values())
    learning = sum(memory[part.name].activations for part in workload.parts if part.step.trains)
    scoring = max(
        (memory[part.name].activations for part in workload.parts if not part.step.trains),
        default=0,
    )
    allocator = sum(part.allocator for part in memory.values())
    writing = 0 if workload.writing is None else _writing_bytes(workload.trained, workload.writing)
    flops = sum(_step_flops(part) for part in workload.parts) * workload.processes
    if workload.writing is not None:
        flops += (
            workload.written_share
            * _writing_flops(workload.trained, workload.writing)
            * workload.processes
        )
    part = workload.trained
    weights, trained = trained_parameters(part.config, part.step)
    saved = trained if part.step.lora_rank else weights
    return Needs(
        memory=memory,
        writing=writing,
        peak=held + max(learning, scoring, writing) + allocator,
        allocator=allocator,
        flops_per_step=flops,
        checkpoint=saved * part.step.weight_dtype.itemsize + trained * _ADAM_BYTES,
    )


def _part_memory(part: Part, heap: HeapRules | None) -> PeakMemory:
    memory = peak_memory(
        part.config, part.step, heap=heap if part.step.trains else None
    )  # others use its free blocks
    return replace(memory, weights=0) if part.shares_weights else memory


def _step_flops(part: Part) -> float:
    """FLOPs of one process in an optimizer step. A frozen weight has no gradient, and a recomputed pass is one more."""
    forward = forward_flops(part.config, part.step) * part.step.accumulation * part.passes
    if not part.step.trains:
        return forward
    times = 2 if part.step.lora_rank else 3
    return forward * (times + (1 if part.step.activation_checkpointing else 0))


def _writing_flops(part: Part, writing: Writing) -> float:
    tokens = writing.prompt_tokens + writing.completion_tokens
    step = replace(part.step, batch_size=1, sequence_length=tokens, trains=False, lora_rank=0)
    return forward_flops(part.config, step) * writing.rows


def _writing_bytes(part: Part, writing: Writing) -> int:
    """Keys and values of every layer, in the type that they are computed in, and the rollout itself."""
    config: Any = part.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    bytes_each = 2 if part.step.bf16 else part.step.weight_dtype.itemsize
    tokens = writing.rows * (writing.prompt_tokens + writing.completion_tokens)
    return (
        2 * config.num_hidden_layers * heads * width * bytes_each * tokens + _ROLLOUT_BYTES * tokens
    )
