"""A Trainer for encoder-decoders that is evaluated by what it writes, and the settings that it needs."""

import copy
from collections.abc import Collection
from typing import Any

from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

from hfstack.errors import ConfigError
from hfstack.training.in_order import InOrderTrainer
from hfstack.training.settings import check_best_metric


class TranslatingTrainer(InOrderTrainer, Seq2SeqTrainer):
    """Upstream's Seq2SeqTrainer whose evaluation reads the rows in their order, so that texts find their sources."""

    def write_held_out(self) -> tuple[dict[str, float], Any]:
        """Return the metrics of upstream (`eval_loss`, ...) and the ids written for each evaluation row, -100 padded.

        Texts are written here whether or not they were while training.
        """
        settings: Any = self.args
        before = settings.predict_with_generate, self.compute_metrics
        settings.predict_with_generate, self.compute_metrics = True, None
        try:
            output = self.predict(self.eval_dataset, metric_key_prefix="eval")  # pyright: ignore[reportArgumentType]
        finally:
            settings.predict_with_generate, self.compute_metrics = before
        return output.metrics or {}, output.predictions


def trainer_settings(
    training_args: Seq2SeqTrainingArguments, decoding: dict[str, Any], *, scores: Collection[str]
) -> Seq2SeqTrainingArguments:
    """Return the settings for a Trainer whose rows come encoded.

    Args:
        decoding: how texts are written, as `set_decoding` returns it.
        scores: names of what written texts are measured by.

    Raises:
        ConfigError: the best model shall be chosen by a score of written texts, and none are written while training.
    """
    check_best_metric(training_args, scores)
    by_score = (training_args.metric_for_best_model or "loss").removeprefix("eval_") != "loss"
    if by_score and training_args.load_best_model_at_end and not training_args.predict_with_generate:
        raise ConfigError(
            f"--metric_for_best_model {training_args.metric_for_best_model} needs --predict_with_generate true"
        )
    settings = copy.copy(training_args)
    settings.push_to_hub = False  # checkpoints are pushed by what the recipe hands to `protect`
    settings.generation_config = None  # the model has it already
    settings.generation_max_length, settings.generation_num_beams = decoding["max_length"], decoding["num_beams"]
    return settings
