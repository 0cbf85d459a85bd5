"""Explanations as one HTML page: each text with its tokens coloured by what they did to the logit."""

from collections.abc import Sequence
from html import escape

from hfstack.tasks.classification.attributions import Explanation

_STYLE = """
:root { color-scheme: light dark; --for: 42, 127, 158; --against: 200, 100, 60; }
body { font: 16px/1.6 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
article { border-top: 1px solid #8886; padding: .8rem 0; }
.facts { color: #808080; font-size: 85%; margin: .2rem 0; }
.text { margin: .3rem 0; overflow-wrap: anywhere; white-space: pre-wrap; }
.token { border-radius: 3px; padding: .1em 0; }
"""


def explanation_page(explanations: Sequence[Explanation], *, model: str) -> str:
    """Return a self-contained page; blue tokens speak for the label, orange ones against it."""
    articles = "\n".join(_article(one) for one in explanations)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Explanations</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>\n'
        f"<h1>What moved the model</h1>\n<p>{escape(model)}, integrated gradients. "
        '<span class="token" style="background: rgba(var(--for), .45)">Blue</span> speaks for the label, '
        '<span class="token" style="background: rgba(var(--against), .45)">orange</span> against it, against a text of '
        "neutral tokens. Hover over a token for its share of the logit.</p>\n"
        f"{articles}\n</body></html>\n"
    )


def _article(one: Explanation) -> str:
    largest = max((abs(score) for *_, score in one.tokens), default=0.0) or 1.0
    lines = []
    for index, text in enumerate(one.texts):
        parts, end = [], 0
        for which, first, last, score in one.tokens:
            if which != index or last <= first or first < end:
                continue
            parts.append(escape(text[end:first]))
            hue = "for" if score > 0 else "against"
            parts.append(
                f'<span class="token" style="background: rgba(var(--{hue}), {0.75 * abs(score) / largest:.3f})" '
                f'title="{score:+.4f}">{escape(text[first:last])}</span>'
            )
            end = last
        parts.append(escape(text[end:]))
        lines.append(f'<p class="text" dir="auto">{"".join(parts)}</p>')
    chance = "" if one.probability is None else f", probability {one.probability:.3f}"
    facts = (
        f"logit {one.logit:+.4f}, neutral text {one.baseline_logit:+.4f}, attributions sum to {one.attributed:+.4f} "
        f"(off by {one.delta:+.5f}, {100 * one.relative_delta:.2f} % of the difference; {one.steps} steps)"
    )
    return (
        f"<article><h2>{escape(one.label)}<small>{chance}</small></h2>{''.join(lines)}"
        f'<p class="facts">{facts}</p></article>'
    )
