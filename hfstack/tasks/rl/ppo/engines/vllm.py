"""Generate completions with vLLM: the weights are pushed to it once a rollout.

All that is specific to vLLM is behind TRL's `VLLMGeneration`. It is given the policy alone, so
neither critic nor value head is ever pushed. vLLM computes with other kernels, so its
log-probabilities are not the trainer's: they are returned as the sampler's, and the trainer
corrects for the difference by truncated importance sampling (Yao et al. 2025, "Your Efficient RL
Framework Secretly Brings You Off-Policy RL Training").

Legend: N prompts of this process, T_i tokens of completion i.
"""

import contextlib
import copy
from collections.abc import Generator, Sequence
from typing import Any, Literal

import torch
from accelerate import Accelerator
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from transformers import PreTrainedTokenizerBase
from trl.generation.vllm_generation import VLLMGeneration
from trl.import_utils import is_vllm_available

from hfstack.errors import ConfigError, DataError, MissingExtraError
from hfstack.tasks.causal_lm.decoding.draw import SamplingSettings
from hfstack.tasks.rl.ppo.actor_critic import CRITIC_ADAPTER, ActorCritic, use_adapter
from hfstack.tasks.rl.ppo.engines.interface import Rollout


class VLLMEngine:
    """Samples with vLLM, in the trainer's processes or on a server.

    vLLM is started by the first rollout, when the policy is on its final device.

    Args:
        settings: how to sample; `batch_size` is ignored, since vLLM batches by itself.
        tokenizer: the policy's.
        accelerator: the trainer's; None for one of the same process state.
        mode: "colocate" runs vLLM on the devices of training, "server" asks one that `trl
            vllm-serve` runs.
        server_base_url: of the server, such as http://host:8000.
        gpu_memory_utilization: share of a device's memory that a colocated vLLM may take.
        tensor_parallel_size: devices that share one colocated vLLM.
        max_model_length: tokens of the longest prompt with its completion; None: the model's
            context.
        sleeps: let a colocated vLLM free its memory while the trainer trains.

    Raises:
        MissingExtraError: vLLM is not installed.
        ConfigError: top-k, top-p or min-p: vLLM's log-probabilities are of the filtered
            distribution and do not compare with the trainer's.
    """

    exact_log_probs = False

    def __init__(
        self,
        settings: SamplingSettings,
        tokenizer: PreTrainedTokenizerBase,
        *,
        accelerator: Accelerator | None = None,
        mode: Literal["colocate", "server"] = "colocate",
        server_base_url: str | None = None,
        gpu_memory_utilization: float = 0.3,
        tensor_parallel_size: int = 1,
        max_model_length: int | None = None,
        sleeps: bool = False,
    ) -> None:
        if not is_vllm_available():
            raise MissingExtraError("vllm", "vllm")

        if settings.filters:
            raise ConfigError(
                f"--rollout_engine vllm with top_k {settings.top_k}, top_p {settings.top_p}, min_p "
                f"{settings.min_p}: vLLM's log-probabilities are of the filtered distribution, so "
                "they do not compare with the trainer's; leave these out, or use --rollout_engine "
                "native"
            )

        self.settings = settings
        self._tokenizer = tokenizer
        self._accelerator = accelerator
        self._generation: VLLMGeneration | None = None

        self._options: dict[str, Any] = {
            "mode": mode,
            "server_base_url": server_base_url,
            "gpu_memory_utilization": gpu_memory_utilization,
            "tensor_parallel_size": tensor_parallel_size,
            "max_model_length": max_model_length,
            "enable_sleep_mode": sleeps,
        }

    def generate(self, actor_critic: ActorCritic, prompt_ids: Sequence[Sequence[int]]) -> Rollout:
        """Push the policy's weights to vLLM and generate one completion for each prompt.

        Raises:
            ConfigError: the first time, when vLLM cannot hold this policy.
            DataError: vLLM returns no log-probability for a token that it sampled.
        """
        if self._generation is None:
            self._generation = self._start(actor_critic)

        # Autocast would round what an adapter adds to the weights.
        without_autocast = torch.autocast(actor_critic.device.type, enabled=False)
        with _use_policy_adapter(actor_critic), without_autocast:
            self._generation.sync_weights()

        _, completions, log_probs, token_ids = self._generation.generate(
            prompts=[list(prompt) for prompt in prompt_ids], images=None, num_generations=1
        )

        rows: list[torch.Tensor] = []  # (T_i,) each
        sampled_log_probs: list[torch.Tensor] = []  # (T_i,) each
        returned = zip(completions, log_probs, token_ids, strict=True)
        for number, (completion, row_log_probs, row_ids) in enumerate(returned, 1):
            rows.append(torch.tensor(list(completion), dtype=torch.long))
            sampled_log_probs.append(
                _sampled_log_probs(list(completion), row_log_probs, row_ids, number)
            )

        stops = set(self.settings.stop_token_ids)
        finished = torch.tensor([len(row) > 0 and int(row[-1]) in stops for row in rows])  # (N,)
        return Rollout(rows, finished, log_probs=sampled_log_probs)

    def _start(self, actor_critic: ActorCritic) -> VLLMGeneration:
        """Start vLLM, or connect to its server."""
        policy: Any = actor_critic.policy
        if self._options["mode"] == "colocate" and not policy.name_or_path:
            raise ConfigError(
                "--rollout_engine vllm reads the model's architecture from its folder, and this "
                "policy was made in memory: save it, and name the folder in --model_name_or_path"
            )

        adapters = set(policy.peft_config) if actor_critic.is_peft else set()
        wraps = any(isinstance(module, AuxiliaryTrainingWrapper) for module in policy.modules())
        if wraps and (CRITIC_ADAPTER in adapters or actor_critic.policy_adapter != "default"):
            raise ConfigError(
                "--rollout_engine vllm: whole modules that an adapter trains (modules_to_save) "
                "cannot be told apart unless there is one adapter, named default; leave "
                "modules_to_save out, or use --critic shared or separate"
            )

        settings = self.settings
        return _GenerationWithoutMerging(
            model=policy,
            accelerator=self._accelerator or Accelerator(),
            processing_class=self._tokenizer,
            temperature=settings.temperature,
            max_completion_length=settings.max_new_tokens,
            logprobs=0,  # of the sampled token alone
            # vLLM would stop at the one eos of its own copy of the configuration.
            generation_kwargs={"stop_token_ids": list(settings.stop_token_ids), "ignore_eos": True},
            **self._options,
        )


class _GenerationWithoutMerging(VLLMGeneration):
    """A VLLMGeneration that adds the adapter to what it sends, not to the base.

    Merging writes into the base and takes the adapter out again: each time a base in 16 bits is
    rounded twice, and after some hundred rollouts it is another one.
    """

    def _iter_named_params(self) -> Generator[tuple[Any, Any], Any, None]:
        """Yield the weights by the names that vLLM expects, one layer merged at a time."""
        model: Any = self.model
        if not isinstance(model, PeftModel) or self._dist.is_fsdp:
            yield from super()._iter_named_params()
            return

        tuned = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, BaseTunerLayer)
        }
        for name, parameter in model.named_parameters():
            if model.prefix in name or "original_module" in name:
                continue
            layer, _, own = name.rpartition(".base_layer.")
            value = _merged(tuned[layer], own) if layer in tuned else parameter.data
            plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
            yield (
                self._fix_param_name_to_vllm(plain, extra_prefixes=["modules_to_save.default."]),
                value,
            )


def _merged(layer: BaseTunerLayer, name: str) -> torch.Tensor:
    """Return a weight of a layer's base with its active adapter merged, from a copy."""
    copied = copy.deepcopy(layer)
    copied.merge()
    return copied.get_base_layer().get_parameter(name).data


def _use_policy_adapter(actor_critic: ActorCritic) -> contextlib.AbstractContextManager[None]:
    """Activate the policy's adapter, which is added to the weights."""
    if actor_critic.policy_adapter is None:
        return contextlib.nullcontext()
    return use_adapter(actor_critic.policy, actor_critic.policy_adapter)


def _sampled_log_probs(
    tokens: list[int], log_probs: list[list[float | None]], token_ids: list[list[int]], number: int
) -> torch.Tensor:
    """Return each sampled token's log-probability, (T_i,), checked to be that token's."""
    values = []
    for place, (token, found, ids) in enumerate(zip(tokens, log_probs, token_ids, strict=True), 1):
        value = found[0] if ids and ids[0] == token else None
        if value is None:
            raise DataError(
                f"vLLM gave no log-probability for token {place} of completion {number}, which it "
                f"sampled (token id {token}): its weights may hold NaN; check the model with "
                "--rollout_engine native"
            )
        values.append(value)

    return torch.tensor(values, dtype=torch.float32)
