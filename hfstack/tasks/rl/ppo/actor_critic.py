"""Hold policy and critic in one module, with one forward pass for both.

One module means one `accelerator.prepare`, one DDP or FSDP2 engine and one optimizer. Only
positions that are scored go through the output head, and sequences are padded on the right, so that
causal attention needs no mask and positions are what they would be alone: padding changes no
log-probability, whatever kind of positions the model has.

Legend: b rows, L tokens of the longest one (prompt and completion), n scored tokens, d hidden size,
V vocabulary.
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
from hfstack.models.fused_loss import PLAIN_HEADS
from hfstack.tasks.rl.ppo.log_probs import score_tokens

CRITICS = ("shared", "separate", "adapter")
CRITIC_ADAPTER = "critic"
REFERENCE_ADAPTER = "ref"
_AHEAD_TOLERANCE = 0.1  # of the largest logit: another length rounds otherwise in 16 bits
# of the largest logit: rounding is below it in fp32, and 16-bit heads run the same product
_PROBE_TOLERANCE = 1e-3


class TokenScores(NamedTuple):
    """What a forward pass says about the scored tokens, (n,) each in fp32.

    None where it was not asked for.
    """

    log_probs: Tensor | None
    values: Tensor | None
    entropies: Tensor | None


class Decoded(NamedTuple):
    """One step of decoding."""

    logits: Tensor  # (b, V) fp32, of the next token
    # (b,) fp32, of the state before the next token; a shared trunk gives them for free
    values: Tensor | None
    cache: Cache


@contextlib.contextmanager
def peft_adapter(model: nn.Module, name: str | None) -> Iterator[None]:
    """Switch a PEFT model to one adapter, or to none, inside the block.

    `requires_grad` stays as it is.

    PEFT's own `set_adapter` and `disable_adapter` switch `requires_grad` too, after which training
    goes on without training anything (huggingface/trl#6700).
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
    """A causal language model with a value head on one of three trunks.

    Args:
        policy: a causal language model, or a PEFT model around one, whose active adapter is
            trained.
        critic: "shared" reads values from the policy's own hidden states, "adapter" from those of a
            second adapter (named "critic", added before) on the same weights, "separate" from
            `backbone`.
        backbone: the separate critic's transformer without a head.
        head: the value head to begin with, such as a reward model's; None for a new one.
        head_init_std: spread of a new head's weights; 0 makes every first value 0.
        detach_value: keep the value's gradient out of a shared trunk.
        reference_adapter: the frozen adapter that is the reference of an adapter that was trained
            before; None when the reference is the policy without adapters.

    Raises:
        ConfigError: the policy has no output head, or its logits are not its head's product of the
            last hidden state.
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
    ) -> None:
        super().__init__()
        assert critic in CRITICS and (backbone is not None) == (critic == "separate")
        self.policy = policy
        self.critic = backbone
        self.critic_kind = critic

        self.detach_value = detach_value
        self.is_peft = isinstance(policy, PeftModel)
        self.policy_adapter = _active_adapter(policy) if isinstance(policy, PeftModel) else None
        self.reference_adapter = reference_adapter

        if self.base.get_output_embeddings() is None or self.base.base_model is self.base:
            raise ConfigError(
                f"{type(self.base).__name__} has no language-model head, so it cannot write: name "
                "a causal language "
                "model"
            )

        source = backbone if backbone is not None else self.base
        self.v_head = (
            head
            if head is not None
            else _new_head(source.config.get_text_config().hidden_size, head_init_std)
        )

        self.v_head.to(dtype=torch.float32, device=self.base.device)
        self.config = self.base.config
        splits = [
            getattr(one, "_no_split_modules", None) or []
            for one in (self.base, backbone)
            if one is not None
        ]

        # what FSDP wraps
        self._no_split_modules = sorted({name for names in splits for name in names})

    @property
    def base(self) -> PreTrainedModel:
        """The causal language model, without PEFT's wrapper."""
        policy = cast(Any, self.policy)
        return policy.get_base_model() if self.is_peft else policy

    @property
    def generation_config(self) -> Any:
        """The policy's; Trainer aligns its special tokens with the tokenizer's."""
        return self.base.generation_config

    @property
    def device(self) -> torch.device:
        """Where the policy is."""
        return self.base.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the policy's weights."""
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
        """Score completion tokens.

        Args:
            input_ids: (b, L), prompts with their completions, padded on the right.
            positions: (n,), indices into the flat (b * L) tokens: the position before each scored
                token.
            targets: (n,), the scored tokens.
            wanted: which of "log_probs", "values", "entropies".
            temperature: of the distribution that the tokens were sampled from.
            reference: score by the reference of a PEFT policy: its adapter off, or its frozen copy.
            detach_value: keep the value's gradient out of a shared trunk in this pass.
        """
        log_probs = values = entropies = None
        shares_trunk = self.critic_kind == "shared" and "values" in wanted
        if "log_probs" in wanted or shares_trunk:
            with self._policy_adapter(reference):
                hidden = self._hidden(self.base.base_model, input_ids, positions)  # (n, d)
                if "log_probs" in wanted:
                    log_probs, entropies = score_tokens(
                        self._logits,
                        hidden,
                        targets,
                        vocabulary=self._vocabulary,
                        temperature=temperature,
                        with_entropy="entropies" in wanted,
                    )

            if shares_trunk:
                values = self._value(
                    hidden.detach() if detach_value or self.detach_value else hidden
                )

        if self.critic_kind == "separate" and "values" in wanted:
            assert self.critic is not None
            values = self._value(self._hidden(self.critic, input_ids, positions))
        elif self.critic_kind == "adapter" and "values" in wanted:
            with peft_adapter(self.policy, CRITIC_ADAPTER):
                values = self._value(self._hidden(self.base.base_model, input_ids, positions))

        return TokenScores(log_probs, values, entropies)

    def decode_step(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        *,
        attention_mask: Tensor | None,
        cache: Cache | None,
        with_values: bool = False,
    ) -> Decoded:
        """Read tokens behind what the cache holds and return the logits of the next one.

        Engines call this method only, never a submodule: under FSDP2 it is registered as a forward
        method, so that the weights are gathered.

        Args:
            input_ids: (b, t) new tokens; prompts are padded on the left here.
            position_ids: (b, t), counted without the padding.
            attention_mask: (b, tokens so far), or None when no row is padded.
            cache: what the last step returned; None lets the model make its own.
            with_values: also return the values; a shared trunk only.
        """
        outputs = self.base.base_model(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=True,
        )

        hidden = outputs.last_hidden_state[:, -1]  # (b, d)
        values = self._value(hidden) if with_values and self.critic_kind == "shared" else None
        return Decoded(self._logits(hidden).float(), values, outputs.past_key_values)

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Recompute activations in the backward pass, each layer with its own adapter."""
        kwargs = {"use_reentrant": False, **(activation_checkpointing_kwargs or {})}
        if kwargs["use_reentrant"]:
            raise ConfigError(
                "--activation_checkpointing_kwargs use_reentrant true does not work with PPO: "
                "leave it out"
            )

        if self.is_peft:
            kwargs["context_fn"] = functools.partial(_remember_adapter, self.policy)

        for model in (self.base, self.critic):
            if model is not None:
                own = (
                    kwargs
                    if model is self.base
                    else {k: v for k, v in kwargs.items() if k != "context_fn"}
                )
                model.activation_checkpointing_enable(own, every_n_layers, offload)

    def check_head(self) -> None:
        """Refuse a policy that is not causal, or whose logits are not head(hidden state).

        Raises ConfigError: such a model cannot write, or scales or caps its logits in a way that is
        not known here.
        """
        name, training = type(self.base).__name__, self.base.training
        self.base.eval()  # or dropout would tell the passes apart
        ids = torch.arange(4, device=self.device)[None]  # (1, 4)

        with torch.no_grad():
            expected = self.base(input_ids=ids).logits.float()
            found = self._logits(self.base.base_model(input_ids=ids).last_hidden_state).float()
            begun = self.base(input_ids=ids[:, :2]).logits.float()

        self.base.train(training)
        largest = float(expected.abs().max())
        if not torch.allclose(begun, expected[:, :2], atol=_AHEAD_TOLERANCE * largest, rtol=0):
            raise ConfigError(
                f"{name} reads in both directions, so it cannot write: name a causal language model"
            )

        if not torch.allclose(found, expected, atol=_PROBE_TOLERANCE * largest, rtol=0):
            raise ConfigError(
                f"the logits of {name} are not its output embedding times its last hidden state, "
                "which PPO here takes "
                "for granted: use another model"
            )

    @property
    def _vocabulary(self) -> int:
        return int(cast(Any, self.base.get_output_embeddings()).weight.shape[0])

    def _policy_adapter(self, reference: bool) -> contextlib.AbstractContextManager[None]:
        if not self.is_peft:
            assert not reference, "the reference of a policy without adapters is another module"
            return contextlib.nullcontext()
        if reference:
            return peft_adapter(self.policy, self.reference_adapter)
        return contextlib.nullcontext()  # the policy's adapter is the active one

    def _hidden(self, backbone: nn.Module, input_ids: Tensor, positions: Tensor) -> Tensor:
        """The last hidden states (n, d) of the given flat positions.

        Causal attention needs no mask for them.
        """
        hidden = backbone(input_ids=input_ids, use_cache=False).last_hidden_state  # (b, L, d)
        return hidden.flatten(0, 1).index_select(0, positions)

    def _value(self, hidden: Tensor) -> Tensor:
        """Return values (n,) of hidden states (n, d), in fp32 even under autocast.

        8 bits of mantissa would round returns near 1 by 0.004.
        """
        with torch.autocast(hidden.device.type, enabled=False):
            return self.v_head(hidden.float())[:, 0]

    def _logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) as the model's own forward pass makes them."""
        config = self.base.config.get_text_config()
        between = PLAIN_HEADS.get(config.model_type)
        if between is not None:
            hidden = self.base.get_submodule(between)(hidden)
        head = cast(Callable[[Tensor], Tensor], self.base.get_output_embeddings())
        logits = head(hidden)

        # Gemma 2 (Riviere et al. 2024, section 2)
        cap = getattr(config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap


def _new_head(hidden_size: int, std: float) -> nn.Linear:
    """A value head (d) -> 1 with zero bias."""
    head = nn.Linear(hidden_size, 1, dtype=torch.float32)
    with torch.no_grad():
        head.weight.normal_(std=std) if std > 0 else head.weight.zero_()
        head.bias.zero_()
    return head


def _active_adapter(policy: PeftModel) -> str:
    """The one adapter that is trained.

    Raises ConfigError when several are active at once, or none is layered.
    """
    active = policy.active_adapters
    if len(active) != 1 or policy.active_peft_config.is_prompt_learning:
        raise ConfigError(
            "PPO trains one adapter of weights (LoRA and its kin), got "
            f"{', '.join(active) or 'none'} "
            f"of kind {cast(Any, policy.active_peft_config.peft_type).value}: activate one, or "
            "merge it"
        )

    return active[0]


def _remember_adapter(
    policy: nn.Module,
) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    """Return contexts for torch.utils.checkpoint that recompute with the same adapter.

    The one that is active in the forward pass.
    """
    layer = next(module for module in policy.modules() if isinstance(module, BaseTunerLayer))
    active = None if layer.disable_adapters else layer.active_adapters[0]
    return contextlib.nullcontext(), peft_adapter(policy, active)
