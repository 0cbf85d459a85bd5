"""Say which metrics a reader asks for first, with their units and intervals."""

from collections.abc import Collection, Mapping

from hfstack.drawing.numbers import Figure, metric

REINFORCED = frozenset({"rloo", "grpo", "ppo"})
"""Recipes whose loss is a surrogate, which says nothing about the model."""

# Of a distilled model the loss is its distance from the teacher, whatever both are worth.
_WITHOUT_OWN_LOSS = REINFORCED | {"distill"}

TOKEN_LOSS_RECIPES = frozenset(
    {"pretrain_clm", "pretrain_mlm", "sft", "distill", "evaluate_lm", "seq2seq"}
)
"""Recipes whose loss is in nats per token; that of others is of answers, pairs or rewards."""

_PAIR_LOSS_RECIPES = frozenset({"reward", "dpo"})
_LOSSES = frozenset({"loss", "eval_loss", "train_loss"})

# The metrics that a recipe is known by: its headline, and what is shown under it.
_HEADLINES = {
    "demo_corpus": ("documents", "instruction_rows"),
    "clean": ("documents_out", "documents_in"),
    "tokenizer": ("bytes_per_token", "vocab_size"),
    "evaluate_lm": ("bits_per_byte", "perplexity"),
    "generate": ("completions", "mean_tokens"),
    "score": ("eval_accuracy", "eval_rows"),
    "preferences": ("train_pairs", "mean_score"),
    "annotate": ("judgements", "items"),
    "feedback": ("kept", "agreement"),
    "reward": ("eval_accuracy", "eval_length_rule_accuracy"),
    **dict.fromkeys(("rloo", "grpo", "ppo"), ("eval_reward", "eval_kl_per_completion")),
    "win_rate": ("win_rate", "prompts"),
    "diagnose": ("bad", "warn"),
    "bias": (
        *("crows_pairs_share", "crows_pairs_sentence_share", "winobias_share"),
        *("winobias_sentence_share", "bbq_ambiguous_bias", "bbq_disambiguated_bias"),
    ),
    "safety": ("harmful_refusal_share", "harmless_answer_share", "extracted_share"),
    "classify": ("eval_accuracy", "eval_f1_macro"),
    "tag": ("eval_entity_f1", "eval_loss"),
    "answer": ("eval_answer_f1", "eval_exact_match"),
    "seq2seq": ("eval_bleu", "eval_chrf"),
    # its eval_loss is what it trains: the distance from the teacher, mixed with the answers' loss
    "distill": ("held_out_loss", "teacher_held_out_loss", "eval_divergence"),
    "embed": ("eval_ndcg_at_10", "eval_gain_over_bm25"),
    "search": ("queries", "passages"),
    "pretrain_mlm": ("eval_masked_accuracy", "baseline_masked_accuracy"),
}
# Of a recipe that is not listed.
_ANY_HEADLINE = (
    "bits_per_byte",
    "eval_bits_per_byte",
    "eval_loss",
    "perplexity",
    "eval_accuracy",
    "train_loss",
    "tokens_per_s",
)

# Whoever measured it.
_MOST_TELLING = (
    # of reinforcement learning and rewards
    "win_rate",
    "win_rate_length_controlled",
    "eval_reward",
    "eval_kl_per_completion",
    "eval_ended_share",
    "eval_accuracy",
    "eval_gain_over_length",
    # of classes, spans and losses
    "eval_f1",
    "eval_matthews",
    "eval_entity_f1",
    "eval_exact_match",
    "eval_answer_f1",
    "eval_loss",
    "perplexity",
    "bits_per_byte",
    "token_accuracy",
    "eval_calibration_error",
    # of generated texts and of search
    "rougeL",
    "bleu",
    "eval_rougeL",
    "eval_bleu",
    "eval_chrf",
    "eval_ndcg_at_10",
    "eval_gain_over_bm25",
    "eval_gain_over_before",
    "eval_spearman",
    "bm25_spearman",
    "ended_share",
)
# What a coin would reach, of measures for which that does not depend on the data.
_CHANCE = {
    "win_rate": 0.5,
    "win_rate_length_controlled": 0.5,
    "eval_gain_over_length": 0.0,
    "eval_gain_over_bm25": 0.0,
    "eval_gain_over_before": 0.0,
}

# Endings of names that are no result: times, sizes, ends of intervals, counts.
_CLOCKS = (
    "_runtime",
    "_per_second",
    "_per_s",
    "_per_cpu_s",
    "_bytes",
    "_low",
    "_high",
    "num_tokens",
)

# Beginnings of names that are no result of the run itself, or a check of its own arithmetic.
_NO_RESULT_BEGINNINGS = (
    *("start_", "train_", "dropped_", "before_", "after_"),
    *("check_", "published_check_", "largest_"),
)

# Names that say how much was done, not how well.
_NO_RESULT = frozenset(
    {
        "epoch",
        "total_flos",
        "parameters",
        "parameters_non_embedding",
        "flops",
        "flops_6nd",
        "flops_kaplan",
        "mfu",
        "steps",
        "tokens",
        "unique_tokens",
        "documents",
        "train_loss",
        # of report, how much there is on the page
        "runs",
        "curves",
        "samples",
    }
)


def is_result(name: str, recipe: str) -> bool:
    """Return whether a metric is a result: no clock, count, or surrogate loss."""
    if name in _NO_RESULT or name.endswith(_CLOCKS):
        return False
    if name.startswith(_NO_RESULT_BEGINNINGS):
        return False
    return name != "eval_loss" or recipe not in _WITHOUT_OWN_LOSS


def rank_of(name: str) -> int:
    """Return a rank, smaller first, for what a reader asks for first."""
    return _MOST_TELLING.index(name) if name in _MOST_TELLING else len(_MOST_TELLING)


def is_telling(name: str) -> bool:
    """Return whether a reader asks for a metric first, of whatever run."""
    return name in _MOST_TELLING


def most_telling(names: Collection[str], recipe: str = "") -> list[str]:
    """Return those of the names that are results, what is asked for first in front."""
    own = _HEADLINES.get(recipe, ())
    results = sorted((name for name in names if is_result(name, recipe)), key=rank_of)
    return [name for name in dict.fromkeys((*own, *results)) if name in names]


def headline_names(metrics: Collection[str], recipe: str) -> list[str]:
    """Return the metrics that a run is known by first, then the others."""
    known = _HEADLINES.get(recipe, ()) + _ANY_HEADLINE
    return [name for name in dict.fromkeys((*known, *metrics)) if name in metrics]


def unit_of_loss(recipe: str, metrics: Collection[str] = ()) -> str:
    """Return what a recipe's loss is counted in; "" where it has no unit.

    Args:
        recipe: its name.
        metrics: the names of its metrics: a classifier that has no accuracy predicts numbers.
    """
    if recipe in TOKEN_LOSS_RECIPES:
        return "nats/token"
    if recipe in _PAIR_LOSS_RECIPES:
        return "nats/pair"
    return "nats/row" if recipe == "classify" and "eval_accuracy" in metrics else ""


def is_bound(name: str, metrics: Collection[str]) -> bool:
    """Return whether a metric is the end of another one's interval."""
    whole = name.removesuffix("_low").removesuffix("_high")
    return whole != name and {whole, f"{whole}_low", f"{whole}_high"} <= set(metrics)


def is_at_chance(name: str, metrics: Mapping[str, float]) -> bool:
    """Return whether an interval reaches down to what comes without learning."""
    bounds, bare = interval_of(name, metrics), name.removeprefix("eval_")
    baseline = metrics.get(f"eval_baseline_{bare}", _CHANCE.get(name))
    return bounds is not None and baseline is not None and bounds[0] <= baseline


def interval_of(name: str, metrics: Mapping[str, float]) -> tuple[float, float] | None:
    """Return the 95 % interval of a metric, where it was measured."""
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    return None if low is None or high is None else (low, high)


def figure_of(name: str, metrics: Mapping[str, float], recipe: str) -> Figure:
    """Return a metric of a recipe as it is shown; a loss has the unit of this recipe."""
    figure = metric(name, metrics[name])
    return figure._replace(unit=unit_of_loss(recipe, metrics)) if name in _LOSSES else figure


def range_of(name: str, metrics: Mapping[str, float]) -> str:
    """Return the interval of a metric as `88.0 to 93.7`, or "" where there is none."""
    bounds = interval_of(name, metrics) or ()
    return " to ".join(metric(name, bound).text for bound in bounds)


def describe_measure(name: str, metrics: Mapping[str, float], recipe: str) -> str:
    """Return `accuracy 91.2 % (88.0 to 93.7)`: a metric with its unit and interval."""
    figure, bounds = figure_of(name, metrics, recipe), range_of(name, metrics)
    # In a line of results all are of held-out rows; only a loss could be the training's too.
    label = figure.label if name in _LOSSES else figure.label.removeprefix("Held-out ")
    label = label if label[1:2].isupper() or label[1:2].isdigit() else label[:1].lower() + label[1:]
    # `bits per byte 1.47` needs no unit
    shown = figure.text if figure.unit.replace("/", " per ") in label else str(figure)
    return f"{label} {shown}" + (f" ({bounds})" if bounds else "")
