"""Make ORPO's loss a mean over the tokens and pairs of a step or an evaluation.

TRL's ORPOTrainer averages over each micro-batch by itself, and the Trainer over these, so that the
tokens of short answers weigh more in accumulated steps and beside a short last batch. Here what is
a mean over a micro-batch is weighed by its share of the whole.
"""

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from trl.experimental.orpo import ORPOTrainer
else:
    ORPOTrainer = object

_NLL = 4  # where the loss of the chosen text stands in what TRL's forward pass returns


class WholeStepMeans(ORPOTrainer):
    """What TRL's ORPOTrainer is combined with; named before it."""

    _share = (1.0, 1.0)  # of the micro-batch's tokens and pairs, over the mean micro-batch's
    _tokens = _pairs = 0.0  # of a mean micro-batch of the step on one process

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Take the micro-batches of a step, and count their tokens and pairs."""
        samples, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        sizes = [(*_size(batch), 1) for batch in samples] or [(0, 0, 0)]
        own = torch.tensor(sizes, dtype=torch.float32, device=device).sum(0)  # (3,)
        whole: Any = self.accelerator.reduce(own, "sum")
        tokens, pairs, batches = whole.tolist()
        self._tokens, self._pairs = tokens / max(batches, 1), pairs / max(batches, 1)
        return samples, count

    def evaluation_loop(self, dataloader: Any, *args: Any, **settings: Any) -> Any:
        """Evaluate with each chosen token counted once, whatever the batches."""
        before = self._tokens, self._pairs
        rows = dataloader.dataset
        self._tokens = sum(len(ids) - 1 for ids in rows["chosen_input_ids"]) / max(len(rows), 1)
        self._pairs = 1.0
        try:
            return super().evaluation_loop(dataloader, *args, **settings)
        finally:
            self._tokens, self._pairs = before

    def get_batch_loss_metrics(self, model: Any, batch: Any, train_eval: Any = "train") -> Any:
        """Compute TRL's loss of a micro-batch, weighed by its share of the whole."""
        tokens, pairs = _size(batch)
        if train_eval == "train":
            self._share = tokens / self._tokens, pairs / self._pairs
        else:
            # an evaluation averages batches by their pairs
            self._share = tokens / pairs / self._tokens, 1.0
        return super().get_batch_loss_metrics(model, batch, train_eval)

    def store_metrics(self, metrics: dict[str, float], train_eval: Any = "train") -> None:
        """Keep the metrics of a micro-batch without those that count padding."""
        kept = {name: value for name, value in metrics.items() if "logits/" not in name}
        super().store_metrics(kept, train_eval)

    def concatenated_forward(self, model: Any, batch: Any) -> Any:
        """Run TRL's forward pass, and weigh the mean over the chosen texts' tokens."""
        found: list[Any] = list(super().concatenated_forward(model, batch))
        found[_NLL] = found[_NLL] * self._share[0]
        return tuple(found)

    def odds_ratio_loss(self, policy_chosen_logps: Any, policy_rejected_logps: Any) -> Any:
        """Compute TRL's loss of the odds, and weigh what becomes a mean over pairs."""
        losses, *others = super().odds_ratio_loss(policy_chosen_logps, policy_rejected_logps)
        return losses * self._share[1], *others


def _size(batch: Any) -> tuple[float, int]:
    """Return the scored tokens of the chosen texts, and the pairs, of a batch."""
    mask = batch["chosen_attention_mask"]  # (B, T)
    return float(mask[:, 1:].sum()), len(mask)
