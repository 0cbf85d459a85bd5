"""Hold policy and critic in one module: log-probs and values in one pass.

One module means one `accelerator.prepare`, one DDP or FSDP2 engine and one optimizer. Only
positions that are scored go through the output head. Sequences are padded on the right, so that
causal attention needs no mask and each position is what it would be alone: padding changes no
log-probability, whatever kind of positions the model has.

Legend: b rows, L tokens of the longest one (prompt and completion), n scored tokens, t new tokens
and S tokens so far while decoding, d hidden size, V vocabulary.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from hfstack.errors import ConfigError
from hfstack.logs import get_logger
from hfstack.models.cache import CACHE_NAME, get_cache
from hfstack.models.evaluation_mode import evaluation_mode
from hfstack.models.output_head import OutputHead, body_of, find_output_head
from hfstack.tasks.causal_lm.decoding.step import DecodingStep
from hfstack.tasks.rl.ppo.log_probs import score_tokens

logger = get_logger(__name__)

CRITICS = ("shared", "separate", "adapter", "none")
CRITIC_ADAPTER = "critic"
REFERENCE_ADAPTER = "ref"

# A share of the largest logit: in 16 bits another length rounds differently.
_AHEAD_TOLERANCE = 0.1


class TokenScores(NamedTuple):
    """Scores of the scored tokens, (n,) each in fp32.

    None where it was not asked for.
    """

    log_probs: Tensor | None
    values: Tensor | None
    entropies: Tensor | None


@contextlib.contextmanager
def use_adapter(model: nn.Module, name: str | None) -> Iterator[None]:
    """Let a PEFT model use one adapter, or none (None), inside the block.

    `requires_grad` stays as it is. PEFT's own `set_adapter` and `disable_adapter` change
    `requires_grad` too, after which training silently trains nothing (huggingface/trl#6700).
    """
    layers: list[Any] = [
        module
        for module in model.modules()
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)
    ]

    before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = name is None
            if name is not None:
                layer._active_adapter = [name]
        yield
    finally:
        for layer, (active, disabled) in zip(layers, before, strict=True):
            layer._active_adapter, layer._disable_adapters = active, disabled


class ActorCritic(nn.Module):
    """A causal language model, with a value head on one of three trunks or none.

    Args:
        policy: a causal language model, or a PEFT model around one, whose active adapter is
            trained.
        critic: "shared" computes values from the policy's own hidden states, "adapter" from those
            of a second adapter (named "critic", added before) on the same weights, "separate" from
            `backbone`; "none" computes none.
        backbone: the separate critic's transformer without a head.
        head: an initial value head, such as a reward model's; None for a newly initialised one.
        head_init_std: standard deviation of a newly initialised head's weights; 0 makes every
            initial value 0.
        detach_value: keep the value's gradient out of a shared trunk.
        reference_adapter: the frozen adapter that is the reference of an adapter that was trained
            before; None when the reference is the policy without adapters.
        output_head: how logits come of hidden states, where it is known; else it is found.

    Raises:
        ConfigError: the policy has no output head.
    """

    main_input_name = "input_ids"
    accepts_loss_kwargs = False  # read by Trainer

    def __init__(
        self,
        policy: PreTrainedModel | PeftModel,
        *,
        critic: str = "shared",
        backbone: PreTrainedModel | None = None,
        head: nn.Linear | None = None,
        head_init_std: float = 0.0,
        detach_value: bool = False,
        reference_adapter: str | None = None,
        output_head: OutputHead | None = None,
    ) -> None:
        super().__init__()
        assert critic in CRITICS and (backbone is not None) == (critic == "separate")
        self.policy = policy
        self.critic = backbone
        self.critic_kind = critic
        self.detach_value = detach_value

        self.is_peft = isinstance(policy, PeftModel)
        self.policy_adapter = _trained_adapter(policy) if isinstance(policy, PeftModel) else None
        self.reference_adapter = reference_adapter

        if self.base.get_output_embeddings() is None or self.trunk is self.base:
            raise ConfigError(
                f"{type(self.base).__name__} has no language-model head, so it cannot generate: "
                "name a causal language model"
            )
        self.output_head = output_head or find_output_head(self.base)

        trunk = backbone if backbone is not None else self.base
        if head is None and critic != "none":
            head = _new_value_head(_hidden_width(trunk), head_init_std)
        self.v_head = head
        if self.v_head is not None:
            self.v_head.to(dtype=torch.float32, device=self.base.device)

        # Trainer reads the configuration, FSDP the modules that it wraps as a unit each.
        self.config = self.base.config
        unsplit: set[str] = set()
        for model in (self.base, backbone):
            if model is not None:
                unsplit.update(getattr(model, "_no_split_modules", None) or [])
        self._no_split_modules = sorted(unsplit)

    @property
    def base(self) -> PreTrainedModel:
        """Return the causal language model, without PEFT's wrapper."""
        policy = cast(Any, self.policy)
        return policy.get_base_model() if self.is_peft else policy

    @property
    def trunk(self) -> PreTrainedModel:
        """Return the policy's transformer below its head."""
        return body_of(self.base)

    @property
    def has_critic(self) -> bool:
        """Return whether values are computed at all."""
        return self.v_head is not None

    @property
    def generation_config(self) -> Any:
        """Return the policy's generation settings.

        Trainer aligns their special tokens with the tokenizer's.
        """
        return self.base.generation_config

    @property
    def device(self) -> torch.device:
        """Return the device of the policy."""
        return self.base.device

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the policy's weights."""
        return self.base.dtype

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        targets: Tensor,
        *,
        wanted: tuple[str, ...] = ("log_probs", "values"),
        temperature: float = 1.0,
        reference: bool = False,
        detach_value: bool = False,
    ) -> TokenScores:
        """Return log-probabilities, values and entropies of completion tokens.

        Args:
            input_ids: (b, L), prompts with their completions, padded on the right.
            positions: (n,), indices into the flat (b * L) tokens: the position before each scored
                token.
            targets: (n,), the scored tokens.
            wanted: which of "log_probs", "values" (with a critic only), "entropies".
            temperature: of the distribution that the tokens were sampled from.
            reference: score by the reference of a PEFT policy: its adapter off, or its frozen copy.
            detach_value: keep the value's gradient out of a shared trunk in this pass.
        """
        log_probs = values = entropies = None
        wants_values = "values" in wanted and self.has_critic
        shares_trunk = wants_values and self.critic_kind == "shared"

        # the policy, and the values of a shared trunk
        if "log_probs" in wanted or shares_trunk:
            with self._policy_or_reference(reference):
                hidden = None
                if shares_trunk or self.output_head is not None:
                    hidden = self._hidden(self.trunk, input_ids, positions)  # (n, d)
                if "log_probs" in wanted:
                    log_probs, entropies = score_tokens(
                        *self._head_and_rows(hidden, input_ids, positions),
                        targets,
                        vocabulary=self._vocabulary,
                        temperature=temperature,
                        with_entropy="entropies" in wanted,
                    )

            if hidden is not None and shares_trunk:
                detaches = detach_value or self.detach_value
                values = self._value(hidden.detach() if detaches else hidden)

        # the values of a critic with hidden states of its own
        if wants_values and self.critic_kind == "separate":
            assert self.critic is not None
            values = self._value(self._hidden(self.critic, input_ids, positions))
        elif wants_values and self.critic_kind == "adapter":
            with use_adapter(self.policy, CRITIC_ADAPTER):
                values = self._value(self._hidden(self.trunk, input_ids, positions))

        return TokenScores(log_probs, values, entropies)

    def decode_step(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        *,
        attention_mask: Tensor | None,
        cache: Cache | None,
        with_values: bool = False,
    ) -> DecodingStep:
        """Append tokens to the cache and return the logits of the next one.

        Engines call this method only, never a submodule: under FSDP2 it is registered as a forward
        method, so that the weights are gathered.

        Args:
            input_ids: (b, t) new tokens; prompts are padded on the left here.
            position_ids: (b, t), counted without the padding.
            attention_mask: (b, S), or None when no row is padded.
            cache: of the last step; None lets the model make its own.
            with_values: also return the values; a shared trunk only.
        """
        carried: dict[str, Any] = {CACHE_NAME: cache}
        outputs = self.trunk(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=attention_mask,
            use_cache=True,
            **carried,
        )

        hidden = outputs.last_hidden_state[:, -1]  # (b, d)
        values = self._value(hidden) if with_values and self.critic_kind == "shared" else None
        return DecodingStep(self._logits(hidden).float(), values, get_cache(outputs))

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Recompute activations in the backward pass.

        Each layer then uses the adapter that it had in the forward pass.
        """
        kwargs = {"use_reentrant": False, **(activation_checkpointing_kwargs or {})}
        if kwargs["use_reentrant"]:
            raise ConfigError(
                "--activation_checkpointing_kwargs use_reentrant true does not work with PPO: "
                "leave it out"
            )

        if self.is_peft:
            adapter_kwargs = {"context_fn": functools.partial(_recompute_contexts, self.policy)}
            self.base.activation_checkpointing_enable(
                kwargs | adapter_kwargs, every_n_layers, offload
            )
        else:
            self.base.activation_checkpointing_enable(kwargs, every_n_layers, offload)

        if self.critic is not None:
            self.critic.activation_checkpointing_enable(kwargs, every_n_layers, offload)

    def check_head(self) -> None:
        """Refuse a policy that is not causal, and say where its head was not found.

        Raises:
            ConfigError: later tokens change earlier logits.
        """
        name = type(self.base).__name__
        ids = torch.arange(4, device=self.device)[None]  # (1, 4)
        with evaluation_mode(self.base), torch.no_grad():
            expected = self.base(input_ids=ids).logits.float()  # (1, 4, V)
            beginning = self.base(input_ids=ids[:, :2]).logits.float()  # (1, 2, V)

        largest = float(expected.abs().max())
        if not torch.allclose(beginning, expected[:, :2], atol=_AHEAD_TOLERANCE * largest, rtol=0):
            raise ConfigError(
                f"{name} attends in both directions, so it cannot generate: name a causal language "
                "model"
            )

        if self.output_head is None:
            logger.warning(
                "the logits of %s do not come of its last hidden state by a head that is found: "
                "tokens are scored by its own logits of whole rows, which takes more memory",
                name,
            )

    @property
    def _vocabulary(self) -> int:
        return int(cast(Any, self.base.get_output_embeddings()).weight.shape[0])

    def _policy_or_reference(self, reference: bool) -> contextlib.AbstractContextManager[None]:
        if not reference:
            return contextlib.nullcontext()  # the policy's adapter is the active one
        assert self.is_peft, "the reference of a policy without adapters is another module"
        return use_adapter(self.policy, self.reference_adapter)

    def _hidden(self, backbone: nn.Module, input_ids: Tensor, positions: Tensor) -> Tensor:
        """Return the last hidden states (n, d) of the given flat positions.

        Causal attention needs no mask for them.
        """
        hidden = backbone(input_ids=input_ids, use_cache=False).last_hidden_state  # (b, L, d)
        return hidden.flatten(0, 1).index_select(0, positions)

    def _value(self, hidden: Tensor) -> Tensor:
        """Return (n,) from (n, d), in fp32 even under autocast.

        In bf16, 8 bits of mantissa would round returns near 1 by 0.004.
        """
        assert self.v_head is not None
        with torch.autocast(hidden.device.type, enabled=False):
            # a sum over the one column, since FSDP2 warns of outputs that are views
            return self.v_head(hidden.float()).sum(dim=1)

    def _logits(self, hidden: Tensor) -> Tensor:
        """Return logits (..., V) as the model's own forward pass computes them."""
        assert self.output_head is not None, "without a head the logits are the model's own"
        return self.output_head.logits(self.base, hidden)

    def _head_and_rows(
        self, hidden: Tensor | None, input_ids: Tensor, positions: Tensor
    ) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """Return a head, and what it reads at scored positions: hidden states or logits."""
        if self.output_head is not None and hidden is not None:
            return self._logits, hidden
        logits = self.base(input_ids=input_ids, use_cache=False).logits  # (b, L, V)
        return nn.Identity(), logits.flatten(0, 1).index_select(0, positions)


def _hidden_width(trunk: PreTrainedModel) -> int:
    """Return the width of the last hidden states."""
    config: Any = trunk.config.get_text_config()
    # some sizes of OPT project them to the width of their embeddings
    return getattr(config, "word_embed_proj_dim", None) or config.hidden_size


def _new_value_head(hidden_size: int, std: float) -> nn.Linear:
    """Return a newly initialised value head (d) -> 1 with zero bias."""
    head = nn.Linear(hidden_size, 1, dtype=torch.float32)
    with torch.no_grad():
        head.weight.normal_(std=std) if std > 0 else head.weight.zero_()
        head.bias.zero_()
    return head


def _trained_adapter(policy: PeftModel) -> str:
    """Return the name of the one adapter that is trained.

    Raises ConfigError when several are active at once, or the adapter has no weights in the layers.
    """
    active = policy.active_adapters
    if len(active) != 1 or policy.active_peft_config.is_prompt_learning:
        raise ConfigError(
            f"PPO trains one adapter of weights (such as LoRA), got {', '.join(active) or 'none'} "
            f"of kind {cast(Any, policy.active_peft_config.peft_type).value}: activate one, or "
            "merge it"
        )

    return active[0]


def _recompute_contexts(
    policy: nn.Module,
) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    """Return contexts for torch.utils.checkpoint: forward pass and recomputation.

    The recomputation uses the adapter that is active now, in the forward pass.
    """
    layer = next(module for module in policy.modules() if isinstance(module, BaseTunerLayer))
    active = None if layer.disable_adapters else layer.active_adapters[0]
    return contextlib.nullcontext(), use_adapter(policy, active)
