"""Build what PPO starts from: policy, critic, reference, engine and settings."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from accelerate import Accelerator
from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_scheduler
from trl import ModelConfig
from trl.models.utils import prepare_fsdp

from hfstack.errors import ConfigError
from hfstack.logs import get_logger
from hfstack.models.contents import kind_of_architecture
from hfstack.models.dropout import require_no_noise, turn_off_dropout
from hfstack.models.loading import load_tokenizer, merge_into_base
from hfstack.models.output_head import body_of
from hfstack.tasks.causal_lm.decoding.draw import SamplingSettings
from hfstack.tasks.preferences.reward_model import load_reward_model
from hfstack.tasks.rl.ppo.actor_critic import CRITIC_ADAPTER, REFERENCE_ADAPTER, ActorCritic
from hfstack.tasks.rl.ppo.checkpoint import is_critic
from hfstack.tasks.rl.ppo.collect import Collector
from hfstack.tasks.rl.ppo.config import PPOConfig
from hfstack.tasks.rl.ppo.engines.fitting import fit_engine
from hfstack.tasks.rl.ppo.engines.interface import GenerateEngine, RolloutEngine
from hfstack.tasks.rl.ppo.engines.native import NativeEngine
from hfstack.tasks.rl.ppo.engines.vllm import VLLMEngine
from hfstack.tasks.rl.ppo.processes import max_over_processes
from hfstack.tasks.rl.ppo.reward_scores import TokenReward
from hfstack.tokens.chat import stop_at_end_of_turn

logger = get_logger(__name__)

# Learning rate of a shared critic's head, in multiples of the policy's: with one rate the trunk is
# pulled towards the values before the head has learned them.
_SHARED_HEAD_RATE = 10.0
_OTHER_HEADS = frozenset(
    {"sequence classifier", "token classifier", "question answering model", "masked language model"}
)


def build_actor_critic(
    model: PreTrainedModel | PeftModel,
    args: PPOConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    peft_config: PeftConfig | None = None,
) -> ActorCritic:
    """Return policy and critic in one module, and inside PEFT the reference's adapter.

    A PEFT model that is given with its adapter may have been trained before, so its reference is a
    frozen copy of that adapter (named "ref"); with `peft_config` the reference is the model with
    its adapter off.

    Raises:
        ConfigError: the model cannot generate, the adapter settings contradict each other, or the
            critic does not fit.
        CheckpointError: there is no model at `critic_model`.
    """
    saved_as = model.config.architectures or ()
    if wrong := [name for name in saved_as if kind_of_architecture(name) in _OTHER_HEADS]:
        raise ConfigError(
            f"the policy was saved as a {wrong[0]}, without a language-model head: name the model "
            "it was trained from"
        )

    # adapters of policy and reference
    reference_adapter = None
    if isinstance(model, PeftModel):
        if peft_config is not None:
            raise ConfigError(
                "the model has an adapter already, so peft_config would add a second: merge it, "
                "or drop one"
            )
        if args.kl_coef > 0:
            _add_reference_adapter(model)
            reference_adapter = REFERENCE_ADAPTER
    elif peft_config is not None:
        model = cast(PeftModel, get_peft_model(model, peft_config))

    # critic
    kind = _choose_critic_kind(args, is_peft=isinstance(model, PeftModel))
    backbone, head = None, None
    if kind == "separate":
        backbone, head = _load_separate_critic(model, args, tokenizer)
    elif kind == "adapter":
        assert isinstance(model, PeftModel)
        _add_critic_adapter(model)

    actor_critic = ActorCritic(
        model,
        critic=kind,
        backbone=backbone,
        head=head,
        head_init_std=args.value_head_init_std,
        detach_value=args.detach_value,
        reference_adapter=reference_adapter,
    )

    actor_critic.check_head()
    if args.disable_dropout:
        turn_off_dropout(actor_critic)
        require_no_noise(actor_critic.base, "--disable_dropout")
    return actor_critic


def build_reference(
    actor_critic: ActorCritic, args: PPOConfig, reference_model: PreTrainedModel | None
) -> ActorCritic | None:
    """Return the frozen reference model.

    None where the policy holds it itself (PEFT), or no KL is asked for.

    Raises:
        ConfigError: a reference model with another vocabulary, or one that no KL needs.
    """
    if reference_model is None and (args.kl_coef == 0 or actor_critic.is_peft):
        return None

    if reference_model is not None and args.kl_coef == 0:
        raise ConfigError(
            "--kl_coef 0 turns the KL off, so the reference model would be loaded for nothing: "
            "drop one"
        )

    if (
        reference_model is not None
        and reference_model.config.vocab_size != actor_critic.config.vocab_size
    ):
        raise ConfigError(
            f"the reference model has {reference_model.config.vocab_size} tokens, the policy "
            f"{actor_critic.config.vocab_size}: a KL needs the same vocabulary"
        )

    frozen = copy.deepcopy(actor_critic.base) if reference_model is None else reference_model
    head = actor_critic.output_head if reference_model is None else None
    reference = ActorCritic(frozen, output_head=head).requires_grad_(False).eval()
    turn_off_dropout(reference)
    return reference


def choose_stop_token_ids(
    actor_critic: ActorCritic, args: PPOConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[int, ...]:
    """Return the tokens that end a completion.

    Raises ConfigError when there is none, or one is outside the vocabulary.
    """
    chosen = args.stop_token_ids or stop_at_end_of_turn(actor_critic.base, tokenizer)
    if not chosen:
        raise ConfigError(
            "neither the tokenizer nor the model has an eos token, so no completion would end: "
            "set --stop_token_ids"
        )

    rows = actor_critic.config.get_text_config().vocab_size
    if wrong := [token for token in chosen if not 0 <= token < rows]:
        raise ConfigError(f"--stop_token_ids {wrong[0]} is outside the vocabulary of {rows} tokens")
    return tuple(chosen)


def sampling_settings(
    args: PPOConfig, *, stops: tuple[int, ...], pad_token_id: int
) -> SamplingSettings:
    """Return how completions are sampled, for any engine."""
    return SamplingSettings(
        max_new_tokens=args.max_completion_length,
        stop_token_ids=stops,
        pad_token_id=pad_token_id,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
        batch_size=args.rollout_batch_size,
    )


def build_engine(
    args: PPOConfig,
    settings: SamplingSettings,
    tokenizer: PreTrainedTokenizerBase,
    accelerator: Accelerator,
    *,
    max_over_processes: Callable[[int], int] | None,
) -> RolloutEngine:
    """Return the engine that `rollout_engine` names.

    Args:
        args: the settings.
        settings: how to sample.
        tokenizer: the policy's.
        accelerator: the trainer's.
        max_over_processes: the largest of a number over all processes, when the weights are sharded
            over them; None otherwise.

    Raises:
        ConfigError: `generate` on sharded weights, which its loop does not gather.
        MissingExtraError: vLLM is asked for and not installed.
    """
    if args.rollout_engine == "vllm":
        return VLLMEngine(
            settings,
            tokenizer,
            accelerator=accelerator,
            mode=cast(Any, args.vllm_mode),
            server_base_url=args.vllm_server_base_url,
            gpu_memory_utilization=args.vllm_gpu_memory_utilization,
            tensor_parallel_size=args.vllm_tensor_parallel_size,
            max_model_length=args.vllm_max_model_length,
            sleeps=args.vllm_enable_sleep_mode,
        )

    if args.rollout_engine == "generate":
        if max_over_processes is not None:
            raise ConfigError(
                "--rollout_engine generate does not gather weights that FSDP has sharded: use "
                "native"
            )
        return GenerateEngine(settings)

    # a rollout ahead is generated in a thread, while training uses the device
    graphs = args.rollout_cuda_graphs and not args.rollouts_ahead
    return NativeEngine(settings, max_over_processes=max_over_processes, cuda_graphs=graphs)


def build_collector(
    actor_critic: ActorCritic,
    args: PPOConfig,
    tokenizer: PreTrainedTokenizerBase,
    accelerator: Accelerator,
    *,
    rewards: Sequence[Any],
    token_rewards: Sequence[TokenReward],
    reference: ActorCritic | None,
    engine: RolloutEngine | None,
    stops: tuple[int, ...],
) -> Collector:
    """Return what generates and scores completions.

    Args:
        actor_critic: policy and critic, not sharded yet.
        args: the settings.
        tokenizer: the policy's.
        accelerator: the trainer's.
        rewards: prepared.
        token_rewards: rewards of single tokens.
        reference: the frozen reference, or None.
        engine: a caller's own; None for the one that `rollout_engine` names.
        stops: the tokens that end a completion.

    Raises:
        ConfigError: sharding that is not FSDP2, an adapter that would be saved in shards, or a
            model that nothing generates with as it is asked.
        MissingExtraError: vLLM is asked for and not installed.
    """
    plugin: Any = getattr(accelerator.state, "fsdp_plugin", None)
    if accelerator.state.deepspeed_plugin is not None or (plugin and plugin.fsdp_version != 2):
        raise ConfigError(
            "PPO shards its weights with FSDP2 only: drop --deepspeed, or set fsdp_version 2"
        )

    # a merge could not tell the adapters of policy, critic and reference apart
    if plugin and actor_critic.is_peft and "FULL_STATE_DICT" not in str(plugin.state_dict_type):
        raise ConfigError(
            "PPO gathers an adapter when it saves: set fsdp_state_dict_type FULL_STATE_DICT"
        )

    if args.rollouts_ahead and (plugin or engine is not None):
        raise ConfigError(
            "--rollouts_ahead 1 copies the policy for the native engine: it does not go with "
            f"{'sharded weights' if plugin else 'an engine of your own'}, drop one"
        )

    # With sharded weights each pass needs all processes, and so as many passes on each.
    largest = partial(max_over_processes, accelerator) if plugin else None
    if reference is not None and plugin:
        reference = cast(ActorCritic, prepare_fsdp(reference, accelerator))
    elif reference is not None:
        reference = reference.to(accelerator.device)

    pad = cast(int | None, tokenizer.pad_token_id)
    pad = stops[0] if pad is None else pad  # nothing attends to it
    if engine is None:
        settings = sampling_settings(args, stops=stops, pad_token_id=pad)
        engine = build_engine(args, settings, tokenizer, accelerator, max_over_processes=largest)
        if plugin is None:
            engine = fit_engine(engine, actor_critic)
        if args.rollouts_ahead and not isinstance(engine, NativeEngine):
            raise ConfigError(
                "--rollouts_ahead 1 needs the native engine, which cannot generate with "
                f"{type(actor_critic.base).__name__}: leave it out"
            )

    return Collector(
        args,
        tokenizer,
        accelerator,
        engine,
        rewards=rewards,
        token_rewards=token_rewards,
        reference=reference,
        pad_token_id=pad,
        max_over_processes=largest,
    )


def parameter_groups(
    model: nn.Module, args: PPOConfig, *, decayed: set[str], shared: bool
) -> list[dict[str, Any]]:
    """Return the optimizer's groups: policy and critic, with and without weight decay.

    Args:
        model: the ActorCritic.
        args: for the learning rates and the weight decay.
        decayed: names of the parameters that decay.
        shared: the critic is a head on the policy, whose rate is higher unless one is set.
    """
    rate = args.critic_learning_rate
    if rate is None:
        rate = args.learning_rate * (_SHARED_HEAD_RATE if shared else 1.0)

    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((is_critic(name), name in decayed), []).append(parameter)

    return [
        {
            "params": members,
            "weight_decay": args.weight_decay if decays else 0.0,
            "lr": rate if of_critic else args.learning_rate,
        }
        for (of_critic, decays), members in groups.items()
    ]


def delay_policy_schedule(scheduler: Any, args: PPOConfig, model: nn.Module, *, steps: int) -> None:
    """Begin the policy's schedule after the steps that train the critic alone.

    The critic's groups keep the schedule of the whole run.

    Args:
        scheduler: as Trainer made it; one that is no function of the step is left as it is.
        args: the settings.
        model: the ActorCritic.
        steps: of the whole run.
    """
    waits = args.critic_warmup_rollouts * args.steps_per_rollout
    if waits == 0 or not isinstance(scheduler, LambdaLR):
        return

    # the same schedule over the steps that are left for the policy
    left = max(1, steps - waits)
    stand_in = torch.optim.SGD([torch.zeros(1)], lr=args.learning_rate)
    shorter: Any = get_scheduler(
        args.lr_scheduler_type,
        optimizer=stand_in,
        num_warmup_steps=args.get_warmup_steps(left),
        num_training_steps=left,
        scheduler_specific_kwargs=cast(Any, args.lr_scheduler_kwargs),
    )
    shape = shorter.lr_lambdas[0]

    critic = {id(weight) for name, weight in model.named_parameters() if is_critic(name)}
    for index, group in enumerate(scheduler.optimizer.param_groups):
        if id(group["params"][0]) not in critic:
            scheduler.lr_lambdas[index] = lambda step: shape(max(0, step - waits))


def _choose_critic_kind(args: PPOConfig, *, is_peft: bool) -> str:
    """Return the kind of critic that was asked for, or the default.

    The default is none where the advantages need none, an adapter beside an adapter, else a
    separate model.
    """
    if not args.uses_critic:
        return "none"

    if args.critic == "adapter" and not is_peft:
        raise ConfigError(
            "--critic adapter needs a policy with an adapter: add --use_peft, or use --critic "
            "separate"
        )

    if args.critic is not None:
        return args.critic
    if args.detach_value:
        return "shared"
    return "adapter" if is_peft and args.critic_model is None else "separate"


def _load_separate_critic(
    model: PreTrainedModel | PeftModel, args: PPOConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedModel, nn.Linear | None]:
    """Return the transformer of a separate critic, and its head.

    The head is None unless it was trained with the critic model.

    Raises:
        ConfigError: the critic model has another tokenizer, or is not causal.
    """
    base = cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)
    if args.critic_model is None:
        return cast(PreTrainedModel, copy.deepcopy(body_of(base))), None

    settings = ModelConfig(
        model_name_or_path=args.critic_model, dtype=str(base.dtype).removeprefix("torch.")
    )
    if load_tokenizer(settings).get_vocab() != tokenizer.get_vocab():
        raise ConfigError(
            f"--critic_model {args.critic_model} has another tokenizer than the policy, whose "
            "tokens are its input: train it from the same model"
        )

    untrained: list[str] = []
    loaded = load_reward_model(settings, tokenizer, new_modules=untrained)
    whole = merge_into_base(loaded) if isinstance(loaded, PeftModel) else loaded

    try:
        score = cast(nn.Linear, whole.get_submodule("score"))
    except AttributeError:
        raise ConfigError(
            f"--critic_model {args.critic_model} is a {type(whole).__name__}, which attends in "
            "both directions: a value must not depend on later tokens, so name a causal model"
        ) from None

    backbone = cast(PreTrainedModel, whole.base_model)
    backbone.requires_grad_(True)
    if untrained:
        return backbone, None

    head = nn.Linear(score.in_features, 1, dtype=torch.float32)
    with torch.no_grad():
        head.weight.copy_(score.weight)
        head.bias.zero_()

    return backbone, head


def _add_reference_adapter(model: PeftModel) -> None:
    """Add a frozen copy of the active adapter as the reference."""
    active = model.active_adapters[0]
    weights = {
        name: value.clone()
        for name, value in get_peft_model_state_dict(model, adapter_name=active).items()
    }

    model.add_adapter(REFERENCE_ADAPTER, copy.deepcopy(model.peft_config[active]))
    set_peft_model_state_dict(model, weights, adapter_name=REFERENCE_ADAPTER)
    model.set_adapter(active)

    for name, parameter in model.named_parameters():
        if f".{REFERENCE_ADAPTER}." in name:
            parameter.requires_grad_(False)


def _add_critic_adapter(model: PeftModel) -> None:
    """Add a newly initialised adapter for the critic; the policy's stays active."""
    active = model.active_adapters[0]
    model.add_adapter(CRITIC_ADAPTER, copy.deepcopy(model.peft_config[active]))
    model.set_adapter(active)
    for name, parameter in model.named_parameters():
        if f".{CRITIC_ADAPTER}." in name:
            parameter.requires_grad_(True)
