"""Switch a model to evaluation mode for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout off, and the mode back to what it was.

    The mode of the whole model is restored, not of each module of it.
    """
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
