"""Give families a sequence classifier that transformers has none for.

It is what transformers' own decoders have: the transformer under its usual name, and a linear layer
`score` without bias, read at the last token that is no padding. So a checkpoint of the language
model loads into it, and what it saves is read by `AutoModel` (the transformer) with one matrix
product behind it.

Legend: B rows, T tokens, d hidden size, C outputs.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_MAPPING,
)


def is_own_classifier(model_type: str) -> bool:
    """Return whether a family's classifier is ours, since transformers has none."""
    return model_type not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES


def register_classifier(config: Any) -> None:
    """Let AutoModelForSequenceClassification make a classifier of a causal family.

    Nothing is done where it can already.

    Args:
        config: of a model of the family.
    """
    kind = type(config)
    if kind in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING or kind not in MODEL_MAPPING:
        return
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING or config.is_encoder_decoder:
        return

    body: Any = MODEL_MAPPING[kind]
    parents = [one for one in body.__mro__ if issubclass(one, PreTrainedModel)]
    parent = parents[-2]  # the family's own, right below PreTrainedModel
    name = body.__name__.removesuffix("Model") + "ForSequenceClassification"
    # Llama 4's shared parent names no body, its transformer does: by that the language model's
    # weights are found
    prefix = body.base_model_prefix
    if not prefix:
        return
    settings = {"config_class": kind, "base_model_prefix": prefix}
    made = type(name, (LastTokenClassifier, parent), settings)
    AutoModelForSequenceClassification.register(kind, made, exist_ok=True)


class LastTokenClassifier(PreTrainedModel):
    """A transformer with a linear layer that is read at the last token of a text."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        setattr(
            self, self.base_model_prefix, AutoModel.from_config(config, trust_remote_code=False)
        )
        hidden_size = config.get_text_config().hidden_size
        self.score = nn.Linear(hidden_size, config.num_labels, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        *,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput | tuple[Tensor, ...]:
        """Return logits (B, C) of the last token of each row.

        Args:
            input_ids: (B, T), padded on either side; None with `inputs_embeds`.
            attention_mask: (B, T), 1 where a token is no padding; None: no padding.
            inputs_embeds: (B, T, d), in place of token ids.
            use_cache: whether the transformer keeps a cache; None as its configuration says.
            return_dict: False for a tuple.
        """
        given = input_ids if inputs_embeds is None else inputs_embeds
        assert given is not None, "either token ids or their embeddings"
        if attention_mask is None:
            attention_mask = torch.ones(given.shape[:2], dtype=torch.long, device=given.device)

        inputs = {"input_ids": input_ids, "inputs_embeds": inputs_embeds, "use_cache": use_cache}
        outputs = self.base_model(
            **{name: value for name, value in inputs.items() if value is not None},
            attention_mask=attention_mask,
        )
        places = torch.arange(given.shape[1], device=given.device)  # (T,)
        last = (places * (attention_mask != 0)).argmax(dim=1)  # (B,)
        rows = torch.arange(len(last), device=given.device)  # (B,)
        logits = self.score(outputs[0][rows, last])  # (B, C)
        return (logits,) if return_dict is False else SequenceClassifierOutput(logits=logits)
