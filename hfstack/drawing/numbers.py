"""Write numbers, times and names for a reader: few digits, a unit, plain labels."""

import math
import re
from datetime import UTC, datetime
from typing import Any, NamedTuple

# Metric -> (label, unit, style). Of other names the ending decides: see `metric`.
_METRICS = {
    "eval_loss": ("Held-out loss", "nats/token", "number"),
    "loss": ("Loss", "nats/token", "number"),
    "held_out_loss": ("Loss of held-out answers", "nats/token", "number"),
    "teacher_held_out_loss": ("Loss of held-out answers, the teacher's", "nats/token", "number"),
    "eval_divergence": ("Held-out distance from the teacher", "nats/token", "number"),
    "train_loss": ("Mean training loss", "nats/token", "number"),
    "perplexity": ("Perplexity", "", "number"),
    "eval_perplexity": ("Held-out perplexity", "", "number"),
    "bits_per_byte": ("Bits per byte", "bits/byte", "number"),
    "eval_bits_per_byte": ("Held-out bits per byte", "bits/byte", "number"),
    "bytes_per_token": ("Bytes per token", "bytes/token", "number"),
    # of the training
    "learning_rate": ("Learning rate", "", "number"),
    "grad_norm": ("Gradient norm", "", "number"),
    "mfu": ("Model-FLOPs utilisation", "", "share"),
    "train_runtime": ("Training time", "", "duration"),
    "eval_runtime": ("Evaluation time", "", "duration"),
    "total_flos": ("Training compute", "FLOP", "large"),
    # N, D and C of scaling laws
    "parameters": ("Parameters", "", "large"),
    "parameters_non_embedding": ("Parameters outside embeddings", "", "large"),
    "unique_tokens": ("Tokens of the training set", "", "large"),
    "flops": ("Training compute, counted", "FLOP", "large"),
    "flops_6nd": ("Training compute, 6ND", "FLOP", "large"),
    "flops_kaplan": ("Training compute, 6ND without embeddings", "FLOP", "large"),
    # of texts and tokenizers
    "documents_in": ("Documents read", "", "number"),
    "documents_out": ("Documents kept", "", "number"),
    "documents_train": ("Documents for training", "", "number"),
    "documents_eval": ("Documents held out", "", "number"),
    "characters_in": ("Characters read", "", "number"),
    "characters_out": ("Characters kept", "", "number"),
    "instruction_rows": ("Tasks with answers", "", "number"),
    "byte_count": ("Size of the text", "", "bytes"),
    "mean_tokens": ("Mean length", "tokens", "number"),
    "finished_share": ("Ended by themselves", "", "share"),
    "vocab_size": ("Vocabulary", "tokens", "number"),
    # of a diagnosis
    "bad": ("Findings that are bad", "", "number"),
    "warn": ("Warnings", "", "number"),
    "peak_memory_bytes": ("Peak memory", "", "bytes"),
}
_SPELLINGS = {
    "eval": "held-out",
    "f1": "F1",
    "matthews": "correlation (Matthews)",
    "rougeL": "ROUGE-L",
    "rougeLsum": "ROUGE-Lsum",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "chrf": "chrF",
    "ndcg": "nDCG",
    "mrr": "MRR",
    "bm25": "BM25",
    "kl": "KL",
    "mfu": "MFU",
    "bleu": "BLEU",
    "rouge": "ROUGE",
    "pii": "PII",
    "ppo": "PPO",
    "rlhf": "RLHF",
    "gpu": "GPU",
}
_SHARE_ENDINGS = ("rate", "share", "fraction", "ratio", "accuracy")
# Of a name alone: a learning rate is none, and a ratio of probabilities neither.
_SURE_SHARE_ENDINGS = ("share", "fraction", "accuracy")


class Figure(NamedTuple):
    """One number as it is shown: `18.2k` of `tokens/s`, called `Tokens per second`."""

    label: str
    text: str
    unit: str

    def __str__(self) -> str:
        return f"{self.text} {self.unit}".strip()


def metric(name: str, value: float) -> Figure:
    """Return a metric with its label and unit.

    Of an unknown name the ending decides: `_per_s`, `_s`, `_bytes`.
    """
    if name in _METRICS:
        label, unit, style = _METRICS[name]
    else:
        label, unit, style = label_of(name), *_guess_unit(name, value)

    match style:
        case "share" if 0 <= value <= 1:
            return Figure(label, share(value), "%")
        case "duration":
            return Figure(label, duration(value), "")
        case "bytes":
            return Figure(label, *size(value).split(" ", 1))
        case "large":
            return Figure(label, compact(value), unit)
    return Figure(label, number(value), unit)


def is_share(name: str) -> bool:
    """Return whether a metric is a share by its name, so that it lies in 0..1."""
    if name in _METRICS:
        return _METRICS[name][2] == "share"
    return name.rsplit("/", 1)[-1].rsplit("_", 1)[-1] in _SURE_SHARE_ENDINGS


def share(value: float) -> str:
    """Return a fraction in percent, with one decimal unless that would hide it."""
    return f"{100 * value:.1f}" if value >= 0.001 else number(100 * value, digits=2)


def label_of(name: str) -> str:
    """Return `dropped_documents` as `Dropped documents`."""
    name = re.sub("_per_s(?![a-z])", "_per_second", name)
    words = name.replace("_", " ").replace("/", " ").split()
    words = [_SPELLINGS.get(word, word) for word in words] or [name]
    return words[0][:1].upper() + " ".join(words)[1:]


def number(value: Any, *, digits: int = 4) -> str:
    """Return a number with `digits` significant digits.

    Whole numbers are given in full, with thousands separated.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if not math.isfinite(value):
        return str(value)
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        return power(f"{value:.{digits - 1}g}")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def compact(value: float, *, digits: int = 3) -> str:
    """Return a large number with a suffix: 18234 as `18.2k`, 5.1e6 as `5.1M`."""
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 1e15:
        return power(f"{value:.{digits - 1}e}")
    for limit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.{digits}g}{suffix}"
    return f"{value:.{digits}g}"


def power(text: str) -> str:
    """Return `3.2e-05` as `3.2e-5`."""
    mantissa, mark, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if mark else text


def counted(count: int, noun: str, *, more: bool = False) -> str:
    """Return `1 row`, `3 rows` or, with `more`, `3 more rows`."""
    return f"{count:,}{' more' if more else ''} {noun}{'' if count == 1 else 's'}"


def size(count_bytes: float) -> str:
    """Return a number of bytes in the binary unit that fits."""
    value, unit = float(count_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024:
            break
        value, unit = value / 1024, larger

    if unit == "B":
        return f"{int(value)} B"
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"


def duration(seconds: float) -> str:
    """Return a time span in its two largest units."""
    if not math.isfinite(seconds):
        return str(seconds)
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"

    whole = round(seconds)
    for size_s, unit, smaller_s, smaller in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size_s:
            rest = whole % size_s // smaller_s
            return f"{whole // size_s} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"


def instant(iso: str) -> str:
    """Return an ISO time as `31 Jan 2026, 12:00 UTC`."""
    time = datetime.fromisoformat(iso).astimezone(UTC)
    return f"{time.day} {time:%b %Y, %H:%M} UTC"


def _guess_unit(name: str, value: float) -> tuple[str, str]:
    """Return the unit and the style that an unknown metric's name implies."""
    ending = name.rsplit("_", 1)[-1]
    if "_per_s" in name and name.endswith(("_per_s", "_per_second")):
        counted = name.split("_per_s")[0].split("_")[-1]
        return f"{counted}/s", "large"
    if ending in ("s", "seconds", "runtime"):
        return "", "duration"
    if ending == "bytes" or name.startswith("bytes_"):
        return "", "bytes"
    if ending in _SHARE_ENDINGS and isinstance(value, float):
        return "", "share"
    return "", "number"
