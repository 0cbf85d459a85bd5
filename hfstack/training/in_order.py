"""A Trainer that evaluates the rows in their order."""

from typing import Any

import torch
from transformers import Trainer


class InOrderTrainer(Trainer):
    """Trainer whose predictions come in the order of the evaluation rows, whatever the order of training.

    With `train_sampling_strategy` group_by_length upstream shuffles the evaluation rows as well (transformers 5.23,
    `Trainer._get_eval_sampler`), so that predictions could not be put beside the words and texts that they are of.
    """

    def _get_eval_sampler(self, eval_dataset: Any) -> torch.utils.data.Sampler | None:
        """Read rows one after another; several processes share them out and gather them in order by themselves."""
        return torch.utils.data.SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None
