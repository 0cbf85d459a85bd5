"""Evaluate encoder-decoders by the texts that they generate."""

import copy
from collections.abc import Collection
from typing import Any

from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

from hfstack.errors import ConfigError
from hfstack.logs import get_logger
from hfstack.tasks.shared.token_tasks import InOrderTrainer
from hfstack.training.settings import check_best_metric

logger = get_logger(__name__)

_GAIN_ROWS = 256
# nats/token; a translator that began to read gains some tenths, one that reads well over 2
_SMALL_GAIN = 0.05


class TranslatingTrainer(InOrderTrainer, Seq2SeqTrainer):
    """Seq2SeqTrainer that evaluates the rows in order, so texts find their sources."""

    def write_held_out(self) -> tuple[dict[str, float], Any]:
        """Return upstream's metrics and the generated ids of each evaluation row.

        `eval_loss` and so on; ids are padded with -100.

        Texts are written here whether or not they were while training. With two rows or more the
        metrics have `eval_source_gain` too, and a gain near 0 is warned about: such a model writes
        the same whatever it reads.
        """
        settings: Any = self.args
        before = settings.predict_with_generate, self.compute_metrics
        settings.predict_with_generate, self.compute_metrics = True, None

        try:
            output = self.predict(self.eval_dataset, metric_key_prefix="eval")  # pyright: ignore[reportArgumentType]
        finally:
            settings.predict_with_generate, self.compute_metrics = before

        metrics: dict[str, float] = output.metrics or {}
        if len(self.eval_dataset) > 1:  # pyright: ignore[reportArgumentType]
            gain = metrics["eval_source_gain"] = self.source_gain()
            if gain < _SMALL_GAIN:
                logger.warning(
                    "with the source of another row the loss is %.3f nats/token higher than with "
                    "its own: the model "
                    "hardly reads its source, and writes what is usual; see "
                    "docs/recipes/seq2seq.md",
                    gain,
                )

        return metrics, output.predictions

    def source_gain(self) -> float:
        """Return how much the loss grows with another row's source, in nats/token.

        It is taken on the first 256 evaluation rows, each with the source of the next. Nothing is
        written or logged.
        """
        rows: Any = self.eval_dataset
        rows = rows.select(range(min(len(rows), _GAIN_ROWS)))
        sources = rows["input_ids"][:]
        swapped = rows.remove_columns("input_ids").add_column(
            "input_ids", [*sources[1:], sources[0]]
        )

        settings: Any = self.args
        names = ("predict_with_generate", "prediction_loss_only")
        before = {name: getattr(settings, name) for name in names}, self.compute_metrics

        settings.predict_with_generate, settings.prediction_loss_only, self.compute_metrics = (
            False,
            True,
            None,
        )

        try:
            own, other = (self.predict(some).metrics["test_loss"] for some in (rows, swapped))  # pyright: ignore
        finally:
            for name, value in before[0].items():
                setattr(settings, name, value)
            self.compute_metrics = before[1]

        return float(other - own)


def trainer_settings(
    training_args: Seq2SeqTrainingArguments, decoding: dict[str, Any], *, scores: Collection[str]
) -> Seq2SeqTrainingArguments:
    """Return the settings for a Trainer whose rows come encoded.

    Args:
        decoding: how texts are written, as `set_decoding` returns it.
        scores: names of what written texts are measured by.

    Raises:
        ConfigError: the best model shall be chosen by a score of written texts, and none are
            written while training.
    """
    check_best_metric(training_args, scores)
    by_score = (training_args.metric_for_best_model or "loss").removeprefix("eval_") != "loss"
    if (
        by_score
        and training_args.load_best_model_at_end
        and not training_args.predict_with_generate
    ):
        raise ConfigError(
            f"--metric_for_best_model {training_args.metric_for_best_model} needs "
            "--predict_with_generate true"
        )

    settings = copy.copy(training_args)
    settings.push_to_hub = False  # checkpoints are pushed by what the recipe hands to `protect`
    settings.generation_config = None  # the model has it already
    settings.generation_max_length, settings.generation_num_beams = (
        decoding["max_length"],
        decoding["num_beams"],
    )

    return settings
