"""Score completions by a classifier's probability of one label."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from trl import ModelConfig

from hfstack.errors import ConfigError
from hfstack.models.context import context_length
from hfstack.tasks.classification.model import load_trained_classifier
from hfstack.tokens.turns import extract_text


class ClassifierReward:
    """Scores completions from 0 to 1 with a trained classifier of texts.

    The probability is the calibrated one where the classifier has a temperature. Text is tokenised
    by the classifier's own tokenizer, and what is longer than it reads is truncated.

    Args:
        name_or_path: the run of `classify`, or a classifier of the Hub.
        label: the label whose probability is the reward.
        device: where the classifier runs.
        batch_size: completions of one forward pass.
        with_prompt: read prompt and completion as one text; off, the completion alone.

    Raises:
        CheckpointError: there is no trained classifier.
        ConfigError: it has no such label.
    """

    def __init__(
        self,
        name_or_path: str,
        label: str,
        *,
        device: torch.device | str = "cpu",
        batch_size: int = 32,
        with_prompt: bool = True,
    ) -> None:
        self.name_or_path = name_or_path
        model, self.tokenizer, info = load_trained_classifier(
            ModelConfig(model_name_or_path=name_or_path)
        )
        if label not in info.names:
            known = ", ".join(info.names) or "none, it predicts a number"
            raise ConfigError(f"{name_or_path} has no label {label!r}; its labels: {known}")

        self.model = cast(Any, model).to(device).eval().requires_grad_(False)
        self.index = info.names.index(label)
        self.several = info.problem_type == "multi_label_classification"
        self.temperature = info.temperature
        self.max_length = info.max_length or context_length(self.model.config)

        self.batch_size = batch_size
        self.with_prompt = with_prompt
        self.__name__ = label  # under which the reward is logged

    @torch.no_grad()
    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float]:
        """Return the probability of the label for each completion; `columns` are not read."""
        texts = [extract_text(completion) for completion in completions]
        if self.with_prompt:
            texts = [
                extract_text(prompt) + text for prompt, text in zip(prompts, texts, strict=True)
            ]
        # like lengths together: less padding
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        found = [0.0] * len(texts)

        for begin in range(0, len(order), self.batch_size):
            chosen = order[begin : begin + self.batch_size]
            batch = self.tokenizer(
                [texts[index] for index in chosen],
                padding=True,
                truncation=self.max_length is not None,
                max_length=self.max_length,
                return_tensors="pt",
            ).to(self.model.device)

            logits = self.model(**batch).logits.float() / self.temperature  # (B, labels)
            shares = logits.sigmoid() if self.several else logits.softmax(dim=-1)
            for index, share in zip(chosen, shares[:, self.index].tolist(), strict=True):
                found[index] = share

        return found
