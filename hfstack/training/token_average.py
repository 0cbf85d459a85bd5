"""Average the loss of an evaluation over its tokens, not over its batches.

The Trainer averages the means of batches by their rows (transformers 5.23), and TRL its shares of
right tokens by batches: a batch of few tokens counts as much as one of many, so that the loss of
rows of different lengths depends on `--per_device_eval_batch_size`. Here every token counts once.
"""

from typing import TYPE_CHECKING, Any, cast

import torch

from hfstack.tokens.special_tokens import IGNORED_LABEL

if TYPE_CHECKING:
    from transformers import Trainer
else:
    Trainer = object


class EachTokenCounts(Trainer):
    """What a Trainer of token models is combined with; named before it.

    Of several processes only a trainer whose loss is each process's own mean is averaged so.
    """

    shifts_labels = False  # the label of a place is the next token
    means_are_local = False

    _sums: list[tuple[float, float]] | None = None  # (nats, scored tokens) of each batch

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **settings: Any) -> Any:
        """Evaluate one batch, and note its loss with the tokens that it is a mean of."""
        labels = inputs.get("labels")
        result = cast(Any, super().prediction_step(model, inputs, *args, **settings))

        alone = self.means_are_local or self.args.world_size == 1
        of_tokens = getattr(labels, "ndim", 0) == 2  # tokens of rows, no class of each
        if alone and self._sums is not None and of_tokens and result[0] is not None:
            scored = labels[:, 1:] if self.shifts_labels else labels
            tokens = float((scored != IGNORED_LABEL).sum())
            self._sums.append((float(result[0]) * tokens if tokens else 0.0, tokens))
        return result

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **settings: Any) -> Any:
        """Evaluate all batches; the loss is the mean over their tokens."""
        self._sums = []
        output: Any = super().evaluation_loop(
            *args, metric_key_prefix=metric_key_prefix, **settings
        )
        sums, self._sums = self._sums, None

        name = f"{metric_key_prefix}_loss"
        if sums and name in output.metrics:
            total = torch.tensor(sums, dtype=torch.float64).sum(0).to(self.args.device, torch.float)
            whole: Any = self.accelerator.reduce(total, "sum")
            nats, tokens = whole.tolist()
            output.metrics[name] = nats / max(tokens, 1)
            self._average_shares([tokens for _, tokens in sums])
        return output

    def _average_shares(self, tokens: list[float]) -> None:
        """Average what TRL keeps of each batch, such as the share of right tokens."""
        kept = getattr(self, "_metrics", {}).get("eval", {})
        for name, values in kept.items():
            if len(values) == len(tokens) and sum(tokens):
                total = sum(v * n for v, n in zip(values, tokens, strict=True))
                kept[name] = [total / sum(tokens)]
