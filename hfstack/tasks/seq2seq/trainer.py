"""Evaluate encoder-decoders by the texts that they generate."""

import copy
from collections.abc import Collection, Iterator
from contextlib import contextmanager
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


class InOrderSeq2SeqTrainer(InOrderTrainer, Seq2SeqTrainer):
    """Seq2SeqTrainer that evaluates the rows in order, so texts find their sources."""

    def evaluation_loop(self, *args: Any, **settings: Any) -> Any:
        """Evaluate all rows, and gather each of them once.

        Upstream keeps the rows that fill the last batch of several processes (transformers 5.23,
        `Seq2SeqTrainer.predict`), so that there would be more texts than sources.
        """
        self.gather_function = self.accelerator.gather_for_metrics
        return super().evaluation_loop(*args, **settings)

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, *args: Any, **settings: Any
    ) -> Any:
        """Evaluate one batch, by the mean of its own rows where it generates."""
        own: Any = self.args
        self.means_are_local = bool(own.predict_with_generate) and not prediction_loss_only
        return super().prediction_step(model, inputs, prediction_loss_only, *args, **settings)

    def generate_held_out(self) -> tuple[dict[str, float], Any]:
        """Return upstream's metrics and the generated ids of each evaluation row.

        The metrics are `eval_loss` and so on; the ids are padded with IGNORED_LABEL.

        Texts are generated here whether or not they were while training. With two rows or more the
        metrics have `eval_source_gain` too, and a gain near 0 is warned about: such a model
        generates the same whatever it reads.
        """
        rows: Any = self.eval_dataset
        with self._changed_settings(predict_with_generate=True):
            output = self.predict(rows, metric_key_prefix="eval")

        metrics: dict[str, float] = output.metrics or {}
        if len(rows) > 1:
            gain = metrics["eval_source_gain"] = self.source_gain()
            if gain < _SMALL_GAIN:
                logger.warning(
                    "with the source of another row the loss is %.3f nats/token higher than with "
                    "its own: the model hardly reads its source, and generates what is usual; see "
                    "docs/recipes/seq2seq.md",
                    gain,
                )

        return metrics, output.predictions

    def source_gain(self) -> float:
        """Return how much the loss grows with another row's source, in nats/token.

        It is measured on the first 256 evaluation rows, each with the source of the next. Nothing
        is generated or logged.
        """
        rows: Any = self.eval_dataset
        rows = rows.select(range(min(len(rows), _GAIN_ROWS)))
        sources = rows["input_ids"][:]
        swapped = rows.remove_columns("input_ids").add_column(
            "input_ids", [*sources[1:], sources[0]]
        )

        with self._changed_settings(predict_with_generate=False, prediction_loss_only=True):
            own: Any = self.predict(rows).metrics
            other: Any = self.predict(swapped).metrics
        return float(other["test_loss"] - own["test_loss"])

    @contextmanager
    def _changed_settings(self, **changes: bool) -> Iterator[None]:
        """Change settings for a while, without computing metrics."""
        before = {name: getattr(self.args, name) for name in changes}
        compute_metrics, self.compute_metrics = self.compute_metrics, None
        try:
            for name, value in changes.items():
                setattr(self.args, name, value)
            yield
        finally:
            for name, value in before.items():
                setattr(self.args, name, value)
            self.compute_metrics = compute_metrics


def seq2seq_trainer_settings(
    training_args: Seq2SeqTrainingArguments, decoding: dict[str, Any], *, scores: Collection[str]
) -> Seq2SeqTrainingArguments:
    """Return the settings for a Trainer whose rows come encoded.

    Args:
        decoding: how texts are generated, as `set_decoding` returns it.
        scores: names of what generated texts are measured by.

    Raises:
        ConfigError: the best model is to be chosen by a score of generated texts, and none are
            generated while training.
    """
    check_best_metric(training_args, scores)
    best_metric = training_args.metric_for_best_model
    by_score = (best_metric or "loss").removeprefix("eval_") != "loss"
    generates = training_args.predict_with_generate
    if by_score and training_args.load_best_model_at_end and not generates:
        raise ConfigError(
            f"--metric_for_best_model {best_metric} needs --predict_with_generate true"
        )

    settings = copy.copy(training_args)
    settings.push_to_hub = False  # checkpoints are pushed by what the recipe hands to `protect`
    settings.generation_config = None  # the model has it already
    settings.generation_max_length = decoding["max_length"]
    settings.generation_num_beams = decoding["num_beams"]
    return settings
