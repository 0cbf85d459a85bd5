"""Define GRU and LSTM language models as PreTrainedModels, and register them.

They train with `Trainer`, are saved and reloaded like any other model, and `generate()` carries a
fixed-size state instead of a growing key/value cache, so that a token costs the same at position 10
and at position 10,000.

Shapes: B rows, T tokens, V vocabulary, E embedding_size, H hidden_size, L layers; S segments, N
tokens that are not padding, M places in packed order (see recurrence.py). A state is `(h,)` for a
GRU and `(h, c)` for an LSTM, each part (L, B, H).
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from huggingface_hub.dataclasses import strict
from torch import LongTensor, Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from hfstack.errors import ConfigError
from hfstack.models.cache import CACHE_NAME, get_cache
from hfstack.models.recurrence import RecurrentCache, Slab, lstm_precision, split_segments


@strict
class RecurrentConfig(PreTrainedConfig):
    """Settings of GRU and LSTM language models; `model_type` says which of the two.

    Raises:
        ConfigError: a size is below 1 or the dropout is outside [0, 1).
    """

    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values", "cache"]

    vocab_size: int = 4096
    embedding_size: int | None = None
    """E, the width of the token embeddings; None: hidden_size. Another width adds a linear map on
    each side."""
    hidden_size: int = 512
    num_hidden_layers: int = 2
    residual: bool = True
    """True: each layer is x + cell(LayerNorm(x)), with a last LayerNorm. False: a plain stack, as
    in nn.GRU."""
    dropout: float = 0.0
    """On the embeddings and on the output of each layer, in training only."""
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    """Standard deviation of the embeddings and linear maps; the cells have their own scheme, see
    `_init_weights`."""
    tie_word_embeddings: bool = True
    use_cache: bool = True
    max_position_embeddings: int | None = None
    """None: a recurrent model has no longest context."""
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    # Upstream passes the keys that no field declares through kwargs.
    def __post_init__(self, **kwargs) -> None:
        if self.embedding_size is None:
            self.embedding_size = self.hidden_size
        for name in ("vocab_size", "hidden_size", "embedding_size", "num_hidden_layers"):
            if (size := getattr(self, name)) < 1:
                raise ConfigError(
                    f"{name} is {size} in a {self.model_type} config: it must be at least 1"
                )
        if not 0 <= self.dropout < 1:
            raise ConfigError(
                f"dropout is {self.dropout} in a {self.model_type} config: it must be in [0, 1)"
            )
        super().__post_init__(**kwargs)


@strict
class GRUConfig(RecurrentConfig):
    """A GRU language model (Cho et al. 2014, arXiv:1406.1078, in cuDNN's form)."""

    model_type = "hfstack_gru"


@strict
class LSTMConfig(RecurrentConfig):
    """An LSTM language model (Hochreiter and Schmidhuber 1997, with forget gates)."""

    model_type = "hfstack_lstm"


def _make_norm(config: RecurrentConfig) -> nn.Module:
    """Return the norm of a residual layer; a plain stack has none."""
    if not config.residual:
        return nn.Identity()
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)


def _make_projection(from_width: int, to_width: int) -> nn.Module:
    """Return a linear map between two widths, or nothing between equal ones."""
    if from_width == to_width:
        return nn.Identity()
    return nn.Linear(from_width, to_width, bias=False)


class RecurrentLayer(nn.Module):
    """One recurrent cell, with its norm, residual path and dropout."""

    def __init__(self, config: RecurrentConfig, cell_class: type[nn.GRU] | type[nn.LSTM]) -> None:
        super().__init__()
        self.residual = config.residual
        self.norm = _make_norm(config)
        self.cell = cell_class(config.hidden_size, config.hidden_size, batch_first=True)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, hidden: Tensor, state: tuple[Tensor, ...], slabs: Sequence[Slab] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run (B, T, H) straight through, or (M, H) in packed order slab by slab.

        Parts of the state are (1, B or S, H).
        """
        inputs = self.norm(hidden)
        if slabs is None:
            output, state = self._run_cell(inputs, state)
        else:
            output, state = self._run_slabs(inputs, state, slabs)

        output = self.dropout(output)
        return (hidden + output if self.residual else output), state

    def _run_cell(
        self, inputs: Tensor, state: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        if isinstance(self.cell, nn.LSTM):
            with lstm_precision(inputs):
                return self.cell(inputs, (state[0], state[1]))
        output, last = self.cell(inputs, state[0])
        return output, (last,)

    def _run_slabs(
        self, inputs: Tensor, state: tuple[Tensor, ...], slabs: Sequence[Slab]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        # Not a PackedSequence: on the CPU torch then multiplies by the input weights one step at a
        # time, which made a training step of gru-5m 1.6 times and of lstm-5m 2.4 times as long as
        # without document resets.
        outputs, ended, begin = [], [], 0
        for steps, width in slabs:
            places = inputs[begin : begin + steps * width]
            slab = places.view(steps, width, -1).transpose(0, 1)  # (width, steps, H)

            # Segments that ended before this slab keep the state that they ended with.
            ended.append(tuple(part[:, width:] for part in state))
            running = tuple(part[:, :width].contiguous() for part in state)

            output, state = self._run_cell(slab, running)
            outputs.append(output.transpose(0, 1).reshape(steps * width, -1))
            begin += steps * width

        # Later slabs are narrower: what ended last comes first.
        ended.append(state)
        states = tuple(torch.cat(parts, dim=1) for parts in zip(*reversed(ended), strict=True))
        return torch.cat(outputs), states


class RecurrentPreTrainedModel(PreTrainedModel):
    """What upstream asks of a model family."""

    config_class = RecurrentConfig
    config: RecurrentConfig
    base_model_prefix = "model"
    cell_class: ClassVar[type[nn.GRU] | type[nn.LSTM]]
    _no_split_modules = ["RecurrentLayer"]  # noqa: RUF012 - upstream declares it so
    _is_stateful = True  # generate() then refuses assisted decoding, which has to roll a cache back

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if not isinstance(module, nn.RNNBase):
            super()._init_weights(module)
            return

        hidden_size = module.hidden_size
        for name, parameter in module.named_parameters():
            # Loaded from a checkpoint: the slices below do not carry this mark, so upstream would
            # not see it.
            if getattr(parameter, "_is_hf_initialized", False):
                continue

            for gate in parameter.split(hidden_size):  # each gate is a map of its own
                if name.startswith("weight_ih"):
                    init.xavier_uniform_(gate)
                elif name.startswith("weight_hh"):
                    init.orthogonal_(gate)  # Saxe et al. 2013, arXiv:1312.6120
                else:
                    init.zeros_(gate)

            # An open forget gate remembers at first (Jozefowicz et al. 2015).
            if isinstance(module, nn.LSTM) and name.startswith("bias_ih"):
                init.ones_(parameter[hidden_size : 2 * hidden_size])


class RecurrentModel(RecurrentPreTrainedModel):
    """Embeddings and recurrent layers, without the head."""

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__(config)
        width = config.embedding_size or config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, width)
        self.embed_projection = _make_projection(width, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            RecurrentLayer(config, self.cell_class) for _ in range(config.num_hidden_layers)
        )
        self.norm = _make_norm(config)
        self.post_init()

    def _find_starts(
        self, shape: torch.Size, mask: Tensor | None, position_ids: Tensor | None, *, resumed: bool
    ) -> tuple[Tensor, Tensor] | None:
        """Return the (valid, starts) pair, each (B, T), to split the batch by.

        None where it can run straight through.
        """
        # A mask also covers the columns already seen.
        valid = None if mask is None else mask[:, -shape[1] :].bool()
        starts = None if position_ids is None else (position_ids == 0).expand(shape)

        # Column 0 of a row without a state begins with zeros anyway.
        padded = valid is not None and not bool(valid.all())
        inner = starts if resumed or starts is None else starts[:, 1:]
        if not padded and (inner is None or not bool(inner.any())):
            return None

        everywhere = torch.ones(shape, dtype=torch.bool, device=self.device)
        return (everywhere if valid is None else valid), (~everywhere if starts is None else starts)

    def _run(
        self, hidden: Tensor, state: tuple[Tensor, ...], slabs: Sequence[Slab] | None
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """Return the input of each layer, the normed last output, and the last state."""
        every, last_states = [hidden], []
        for index, layer in enumerate(self.layers):
            layer_state = tuple(part[index : index + 1].contiguous() for part in state)
            hidden, last = layer(hidden, layer_state, slabs)
            every.append(hidden)
            last_states.append(last)
        every[-1] = self.norm(hidden)

        # Autocast may return bf16: between calls the state keeps the weights' precision.
        dtype = state[0].dtype
        return every, tuple(torch.cat(parts).to(dtype) for parts in zip(*last_states, strict=True))

    def _run_segments(
        self,
        hidden: Tensor,
        state: tuple[Tensor, ...],
        valid: Tensor,
        starts: Tensor,
        *,
        final_state: bool,
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """Run as `_run`, without padding and with the state reset at each start.

        Outputs at padding are zeros. Without `final_state` the returned state is the one passed in.
        """
        rows, columns, width = hidden.shape

        # Each slab costs a weight gradient, so training takes a quarter of filler for far fewer
        # slabs.
        segments = split_segments(valid, starts, filler_fraction=0.0 if final_state else 0.25)
        if segments is None:
            return [torch.zeros_like(hidden)] * (len(self.layers) + 1), state

        # A segment begins with its row's state, or with zeros.
        keep = segments.continues[None, :, None]
        begin = tuple(part[:, segments.row] * keep for part in state)  # (L, S, H)
        packed_hidden = hidden.reshape(-1, width)[segments.token_index]  # (M, H)
        every, last = self._run(packed_hidden, begin, segments.slabs)

        # Back to the order of the batch.
        home = segments.token_index[segments.real]  # (N,)
        every = [
            packed.new_zeros(rows * columns, width)
            .index_copy(0, home, packed[segments.real])
            .view(hidden.shape)
            for packed in every
        ]
        if not final_state:
            return every, state
        final = tuple(
            part.index_copy(1, segments.ended_row, new[:, segments.ended_by])
            for part, new in zip(state, last, strict=True)
        )
        return every, final

    @can_return_tuple
    def forward(
        self,
        input_ids: LongTensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: LongTensor | None = None,
        past_key_values: RecurrentCache | None = None,
        inputs_embeds: Tensor | None = None,
        *,
        cache: RecurrentCache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,  # upstream callers pass loss and attention arguments through every forward
    ) -> BaseModelOutputWithPast:
        """Run the layers.

        Args:
            input_ids: (B, T); or give `inputs_embeds`.
            attention_mask: (B, T), or (B, T seen so far); 0 marks padding, which leaves the state
                untouched.
            position_ids: (B, T) or (1, T); the state is reset wherever it is 0, so packed documents
                do not mix.
            past_key_values: the state to begin with, which is advanced in place; the name of
                transformers up to 5.23.
            cache: the same, by its name from 5.24 on.
            inputs_embeds: (B, T, E).
            use_cache: return the state; None: as the config says, and never in training.
            output_hidden_states: also return the input of each layer and the final output, L + 1 of
                (B, T, H).

        Returns:
            `last_hidden_state` (B, T, H), zeros at padding when any row is padded;
            the cache, by the name of the installed transformers; `hidden_states`.

        Raises:
            ValueError: both or neither of `input_ids` and `inputs_embeds` are given.
            TypeError: the cache is one of another kind.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        cache = past_key_values if cache is None else cache
        if cache is not None and not isinstance(cache, RecurrentCache):
            raise TypeError(f"the cache is a {type(cache).__name__}, not a RecurrentCache")
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states

        # embeddings (B, T, E) -> (B, T, H); under autocast only the products run in bf16: the
        # residual stream and the state keep the weights' precision
        embedded = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        dtype = self.embed_tokens.weight.dtype
        hidden = self.dropout(self.embed_projection(embedded).to(dtype))
        rows, columns, width = hidden.shape

        # the state of the tokens before, or zeros
        state = cache.state if cache is not None else None
        split = self._find_starts(
            hidden.shape[:2], attention_mask, position_ids, resumed=state is not None
        )
        if state is None:
            parts = 2 if self.cell_class is nn.LSTM else 1
            state = tuple(hidden.new_zeros(len(self.layers), rows, width) for _ in range(parts))

        # straight through, or document by document
        if split is None:
            every, state = self._run(hidden, state, None)
        else:
            every, state = self._run_segments(hidden, state, *split, final_state=use_cache)

        if use_cache:
            cache = RecurrentCache() if cache is None else cache
            cache.advance(state, columns)
        kept: dict[str, Any] = {CACHE_NAME: cache if use_cache else None}
        return BaseModelOutputWithPast(
            last_hidden_state=every[-1],
            hidden_states=tuple(every) if output_hidden_states else None,
            **kept,
        )


class RecurrentForCausalLM(RecurrentPreTrainedModel, GenerationMixin):
    """The layers with a head over the vocabulary, tied to the embeddings by default."""

    # upstream declares it so
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012
    model_class: ClassVar[type[RecurrentModel]]

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__(config)
        self.model = self.model_class(config)
        width = config.hidden_size
        if config.tie_word_embeddings:
            width = config.embedding_size or config.hidden_size
        self.head_projection = _make_projection(config.hidden_size, width)
        self.lm_head = nn.Linear(width, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """Return False: `generate` starts without a cache and takes the first forward's."""
        return False

    @can_return_tuple
    def forward(
        self,
        input_ids: LongTensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: LongTensor | None = None,
        past_key_values: RecurrentCache | None = None,
        inputs_embeds: Tensor | None = None,
        *,
        cache: RecurrentCache | None = None,
        labels: LongTensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs,  # Trainer passes num_items_in_batch to the loss this way
    ) -> CausalLMOutputWithPast:
        """Return logits (B, T, V), or those of the positions to keep, and a loss.

        Args:
            labels: (B, T), -100 where no loss is wanted; shifted here, as in every causal language
                model. With them the loss is in nats per token, else None.
            logits_to_keep: 0 for all positions, n for the last n, or a 1-D tensor of positions.

        The other arguments are those of `RecurrentModel.forward`.
        """
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )

        kept: slice | Tensor = slice(None)
        if isinstance(logits_to_keep, Tensor):
            kept = logits_to_keep
        elif logits_to_keep:
            kept = slice(-logits_to_keep, None)
        hidden = outputs.last_hidden_state[:, kept]
        logits = self.lm_head(self.head_projection(hidden))  # (B, T or kept, V)

        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )

        carried: dict[str, Any] = {CACHE_NAME: get_cache(outputs)}
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, **carried
        )


class GRUModel(RecurrentModel):
    """The layers of a GRU language model."""

    config_class = GRUConfig
    cell_class = nn.GRU


class GRUForCausalLM(RecurrentForCausalLM):
    """A GRU language model."""

    config_class = GRUConfig
    cell_class = nn.GRU
    model_class = GRUModel


class LSTMModel(RecurrentModel):
    """The layers of an LSTM language model."""

    config_class = LSTMConfig
    cell_class = nn.LSTM


class LSTMForCausalLM(RecurrentForCausalLM):
    """An LSTM language model."""

    config_class = LSTMConfig
    cell_class = nn.LSTM
    model_class = LSTMModel


for _config_class, _model_class, _causal_class in (
    (GRUConfig, GRUModel, GRUForCausalLM),
    (LSTMConfig, LSTMModel, LSTMForCausalLM),
):
    AutoConfig.register(_config_class.model_type, _config_class)
    AutoModel.register(_config_class, _model_class)
    AutoModelForCausalLM.register(_config_class, _causal_class)
