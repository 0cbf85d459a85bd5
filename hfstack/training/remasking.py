"""Hide other tokens in each epoch of training."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hfstack.tasks.masked_lm.masking import MaskedBlocks


class HideAnew(TrainerCallback):
    """Tell the blocks which epoch it is, on which their masks depend; a resumed run finds the masks it left.

    Args:
        blocks: the training blocks, which the Trainer's workers have not copied yet when an epoch begins.
    """

    def __init__(self, blocks: MaskedBlocks) -> None:
        self.blocks = blocks

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the epoch, which is whole here unless the run resumes in the middle of one."""
        self.blocks.epoch = int(state.epoch or 0)
