"""Write explanations as one HTML page: texts, tokens coloured by attribution."""

from collections.abc import Sequence

from hfstack.drawing.html import Html, tag
from hfstack.tasks.classification.attributions import Explanation

# The page loads nothing and runs nothing; colours are in style attributes.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --for: 42, 127, 158; --against: 200, 100, 60;
  --paper: light-dark(#ffffff, #111417); --ink: light-dark(#16191c, #e7eaed);
  --soft: light-dark(#59616a, #9aa4ae); --rule: light-dark(#dfe3e7, #2b3138);
  --bar: light-dark(#00629b, #6cbcf0); }
body { font: 16px/1.6 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  background: var(--paper); color: var(--ink); }
h1, h2 { overflow-wrap: anywhere; }
article { border-top: 1px solid var(--rule); padding: .8rem 0; }
.facts { color: var(--soft); font-size: 85%; margin: .2rem 0; overflow-wrap: anywhere; }
.text { margin: .3rem 0; overflow-wrap: anywhere; white-space: pre-wrap; }
.token { border-radius: 3px; padding: .1em 0; position: relative; }
.token:is(:hover, :focus)::after { content: attr(data-score); position: absolute; left: 0;
  bottom: 100%; z-index: 1; padding: 0 .4em; border-radius: 3px; font-size: 85%;
  background: var(--ink); color: var(--paper); white-space: nowrap; }
.labels { display: grid; grid-template-columns: minmax(4rem, max-content) 1fr 3.5rem; gap: 0 .8rem;
  max-width: 30rem; font-size: 85%; margin: .3rem 0; }
.labels dt, .labels dd { margin: 0; overflow-wrap: anywhere; }
.labels .track { align-self: center; height: .7em; border-radius: 3px; background: var(--rule); }
.labels .bar { display: block; height: 100%; border-radius: 3px; background: var(--bar); }
.labels .value { text-align: right; font-variant-numeric: tabular-nums; }
"""
_SHOWN_LABELS = 8


def explanation_page(explanations: Sequence[Explanation], *, model: str) -> str:
    """Return a self-contained page; blue tokens speak for a label, orange against it."""
    head = [
        tag("meta", {"charset": "utf-8"}),
        tag("meta", {"http-equiv": "Content-Security-Policy", "content": _POLICY}),
        tag("title", "Explanations"),
        tag("meta", {"name": "viewport", "content": "width=device-width"}),
        tag("style", Html(_STYLE)),
    ]

    legend = tag(
        "p",
        f"{model}, integrated gradients. ",
        _colored("Blue", "for", 0.45),
        " speaks for the label, ",
        _colored("orange", "against", 0.45),
        " against it, compared with a text of neutral tokens. "
        "Point at a token, or touch it, for its share of the logit.",
    )

    articles = [_render_explanation(one) for one in explanations]
    body = tag("body", tag("h1", "What moved the model"), legend, articles)
    return f"<!doctype html>\n{tag('html', {'lang': 'en'}, tag('head', head), body)}\n"


def _render_explanation(one: Explanation) -> Html:
    """Return the part of the page about one text, or pair of texts, and one label."""
    largest = max((abs(score) for *_, score in one.tokens), default=0.0) or 1.0
    texts = [
        tag("p.text", {"dir": "auto"}, _color_tokens(one, which, largest))
        for which in range(len(one.texts))
    ]
    probability = "" if one.probability is None else f", probability {one.probability:.3f}"
    facts = (
        f"logit {one.logit:+.4f}, neutral text {one.baseline_logit:+.4f}, "
        f"attributions sum to {one.attributed:+.4f} (off by {one.delta:+.5f}, "
        f"{100 * one.relative_delta:.2f} % of the difference; {one.steps} steps)"
    )
    heading = tag("h2", one.label, tag("small", probability))
    return tag("article", heading, _draw_labels(one), texts, tag("p.facts", facts))


def _draw_labels(one: Explanation) -> Html | None:
    """Return the likeliest labels with their probabilities as bars."""
    if not one.probabilities:
        return None
    rows = [
        (
            tag("dt", label),
            tag("dd.track", tag("span.bar", {"style": f"width: {100 * share:.1f}%"})),
            tag("dd.value", f"{100 * share:.1f} %"),
        )
        for label, share in one.probabilities[:_SHOWN_LABELS]
    ]
    return tag("dl.labels", rows)


def _color_tokens(one: Explanation, which: int, largest: float) -> list[Html | str]:
    """Return a text with its tokens coloured, what is between them as it is.

    Args:
        which: of the texts of a pair.
        largest: the attribution that gets the strongest colour.
    """
    text = one.texts[which]
    parts: list[Html | str] = []
    end = 0
    for owner, first, last, score in one.tokens:
        # Tokens of the other text, without characters, or over characters already coloured.
        if owner != which or last <= first or first < end:
            continue
        hue = "for" if score > 0 else "against"
        share = round(0.75 * abs(score) / largest, 3)
        parts += [text[end:first], _colored(text[first:last], hue, share, f"{score:+.4f}")]
        end = last
    return [*parts, text[end:]]


def _colored(text: str, hue: str, opacity: float, score: str | None = None) -> Html:
    """Return a coloured text; a score is shown where it is pointed at, or touched."""
    style = f"background: rgba(var(--{hue}), {opacity:g})"
    shown = {} if score is None else {"data-score": score, "tabindex": 0, "aria-description": score}
    return tag("span.token", {"style": style, **shown}, text)
