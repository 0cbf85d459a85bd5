"""Pages in a real browser, wide and narrow, light and dark: nothing overflows, all can be read."""

from pathlib import Path
from typing import Any

import pytest

from hfstack.tasks.classification.attributions import Explanation
from hfstack.tasks.classification.attributions_page import explanation_page
from tests.reporting.test_page import curve, render, write_training

pytestmark = pytest.mark.slow

# What is wider than the page; what has too little contrast (WCAG 2.1, 1.4.3); what was fetched.
LOOK = """
const tooWide = document.documentElement.scrollWidth - window.innerWidth;
const numbers = (color) => (color.match(/[\\d.]+/g) || []).map(Number);
const light = ([r, g, b]) => [r, g, b].map((one) => one / 255).map((one) =>
  one <= 0.03928 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4)
  .reduce((sum, one, at) => sum + one * [0.2126, 0.7152, 0.0722][at], 0);
const behind = (element) => {
  const layers = [];
  for (let at = element; at; at = at.parentElement) {
    const color = numbers(getComputedStyle(at).backgroundColor);
    if (color.length && color[3] !== 0) layers.push(color);
    if (color.length && (color[3] === undefined || color[3] === 1)) break;
  }
  return layers.reverse().reduce((below, [r, g, b, a = 1]) =>
    [r, g, b].map((one, at) => a * one + (1 - a) * below[at]), [255, 255, 255]);
};
const faint = [];
for (const element of document.querySelectorAll("body *")) {
  const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  if (!own || !element.getClientRects().length || element.closest("script")) continue;
  const style = getComputedStyle(element);
  const [one, other] = [light(numbers(style.color)), light(behind(element))].sort((a, b) => b - a);
  const needed = parseFloat(style.fontSize) >= 24 ? 3 : 4.5;
  const ratio = (one + 0.05) / (other + 0.05);
  if (ratio < needed) faint.push(element.className + ": " + ratio.toFixed(2));
}
const fetched = performance.getEntriesByType("resource").map((entry) => entry.name)
  .filter((name) => !name.startsWith("data:"));
return [tooWide, [...new Set(faint)], fetched];
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A report of two stages, with everything on it, and an explanation."""
    folder = tmp_path_factory.mktemp("pages")
    metrics = {"eval_accuracy": 0.5, "eval_accuracy_low": 0.4, "eval_accuracy_high": 0.6}
    metrics |= {"eval_baseline_accuracy": 0.55, "eval_loss": 0.7}
    findings = {"columns": ["link", "verdict"], "rows": [["sft", "bad"], ["reward", "warn"]]}
    runs = [
        write_training(folder / "a_classifier", curve(), recipe="classify", metrics=metrics),
        write_training(
            folder / "diagnosis",
            curve(),
            recipe="diagnose",
            metrics={"bad": 1, "warn": 1},
            tables={"findings": findings},
        ),
    ]
    report = folder / "report.html"
    report.write_text(render(*runs), encoding="utf-8")

    one = Explanation(
        texts=("a kind owl and a very dull film",),
        tokens=((0, 2, 6, 0.9), (0, 22, 26, -0.8)),
        label="good",
        probability=0.7,
        logit=1.0,
        baseline_logit=0.0,
        attributed=1.0,
        steps=32,
        probabilities=(("good", 0.7), ("bad", 0.3)),
    )
    explained = folder / "explanations.html"
    explained.write_text(explanation_page([one], model="runs/classify"), encoding="utf-8")
    return [report, explained]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_fit_and_can_be_read(browser: Any, pages: list[Path], width: int, theme: str) -> None:
    size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    for page in pages:
        browser.get(page.as_uri())
        too_wide, faint, fetched = browser.execute_script(LOOK)
        assert too_wide <= 0, page.name
        assert faint == [] and fetched == [], page.name


def test_the_share_of_a_token_is_shown_by_touch(browser: Any, pages: list[Path]) -> None:
    browser.get(pages[1].as_uri())
    shown = browser.execute_script(
        "const token = document.querySelector('.token[data-score]'); token.focus();"
        "return getComputedStyle(token, '::after').content;"
    )
    assert shown == '"+0.9000"'
