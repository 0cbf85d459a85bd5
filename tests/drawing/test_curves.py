"""The parts of the report page: axes, smoothing, labels, colours, markup and numbers."""

import math
import re
import shlex
from pathlib import Path

import pytest

from hfstack.drawing.curves import Axis, linear_axis, log_axis, smooth, spread, tick_texts
from hfstack.drawing.html import Html, json_block, tag
from hfstack.drawing.numbers import duration, instant, metric, number, size
from hfstack.reporting import page
from hfstack.reporting.provenance import first_settings, wrapped_command


def test_axes_have_round_ticks() -> None:
    """Worked by hand: 4.5 over 5 ticks asks for steps of 0.9, and the next of 1, 2, 5 is 1."""
    assert linear_axis(1.2, 5.7).ticks == [1, 2, 3, 4, 5, 6]
    assert linear_axis(0, 600, ticks=6, snug=True).ticks == [0, 100, 200, 300, 400, 500, 600]
    assert linear_axis(0, 0.002).ticks == [0, 0.0005, 0.001, 0.0015, 0.002]
    assert tick_texts(linear_axis(0, 0.002)) == ["0", "5e-4", "1e-3", "1.5e-3", "2e-3"]
    assert tick_texts(linear_axis(0.1, 0.4)) == ["0.1", "0.2", "0.3", "0.4"]
    assert log_axis(1, 1000).ticks == [1, 10, 100, 1000]
    axis = log_axis(0.3, 40)
    assert axis.low <= 0.3 < 40 <= axis.high
    assert Axis(1, 100, [], log=True).position(10) == pytest.approx(0.5)
    assert linear_axis(2, 2).position(2) == pytest.approx(0.5)


def test_smoothing_keeps_straight_lines_and_removes_noise() -> None:
    line = [(step, 3.0 - step / 100) for step in range(100)]
    assert [value for _, value in smooth(line)] == pytest.approx([value for _, value in line])
    noisy = [(step, (-1.0) ** step) for step in range(200)]
    assert max(abs(value) for _, value in smooth(noisy)[40:-40]) < 0.1


def test_labels_that_meet_are_pushed_apart() -> None:
    assert spread([0.2, 0.5], gap=0.1) == pytest.approx([0.2, 0.5])
    assert spread([0.5, 0.5], gap=0.1) == pytest.approx([0.45, 0.55])
    assert spread([0.99, 1.0], gap=0.1) == pytest.approx([0.9, 1.0])
    assert spread([0.0, 0.0, 0.05], gap=0.1) == pytest.approx([0.0, 0.1, 0.2])


def test_colours_can_be_read() -> None:
    """Text and series colours have a contrast of at least 4.5 on the paper, in both themes (WCAG 2.2, 1.4.3)."""

    def luminance(color: str) -> float:
        channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    style = Path(page.__file__).with_name("page.css").read_text(encoding="utf-8")
    colors = dict(re.findall(r"--([\w-]+): light-dark\((.*?)\)", style))
    names = [f"c{index}" for index in range(8)] + ["ink", "soft", "accent", "good", "bad", "wait"]
    for theme in (0, 1):
        for background in ("paper", "raised"):
            ground = luminance(colors[background].split(", ")[theme])
            for name in names:
                front = luminance(colors[name].split(", ")[theme])
                ratio = (max(front, ground) + 0.05) / (min(front, ground) + 0.05)
                assert ratio >= 4.5, f"{name} on {background} in theme {theme}: {ratio:.2f}"


# ---- small things


def test_markup_escapes_what_is_not_markup() -> None:
    assert tag("p.a.b", {"title": '"<'}, "1 < 2", Html("<b>x</b>"), None, ["&", 3]) == (
        '<p class="a b" title="&quot;&lt;">1 &lt; 2<b>x</b>&amp;3</p>'
    )
    assert "</script>" not in json_block("d", "</script>").removesuffix("</script>")
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_block("d", math.nan)


def test_numbers_have_units_and_few_digits() -> None:
    assert str(metric("tokens_per_s", 18213.4)) == "18.2k tokens/s"
    assert str(metric("eval_loss", 1.64123)) == "1.641 nats/token"
    assert str(metric("mfu", 0.1123)) == "11.2 %"
    assert str(metric("unknown_rate", 0.00002)) == "0.0020 %"
    assert str(metric("index_bytes", 7340032)) == "7 MiB"
    assert str(metric("train_runtime", 142.7)) == "2 min 23 s"
    assert [number(value) for value in (1234567, 0.5, 3.0, 2.5e-5, math.inf)] == [
        "1,234,567",
        "0.5000",
        "3",
        "2.5e-5",
        "inf",
    ]
    assert [size(value) for value in (0, 1023, 1536, 5 * 2**30)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "5 GiB",
    ]
    assert [duration(value) for value in (0.25, 59.7, 3600, 90000)] == [
        "0.25 s",
        "60 s",
        "1 h",
        "1 d 1 h",
    ]
    assert instant("2026-01-31T13:30:00+01:00") == "31 Jan 2026, 12:30 UTC"


def test_commands_wrap_by_option_and_mean_the_same() -> None:
    command = shlex.join(
        [
            "recipes/generate.py",
            "--prompts",
            "Once upon a time",
            "it's",
            "--max_new_tokens",
            "9" * 60,
        ]
    )
    wrapped = wrapped_command(command)
    assert wrapped.count("\\\n") == 2
    assert shlex.split(wrapped.replace("\\\n", "")) == shlex.split(command)
    assert wrapped_command("short --a 1") == "short --a 1"


def test_first_settings_keep_zero_and_drop_what_is_unset() -> None:
    settings = {
        "A": {"seed": 0, "bf16": False, "max_steps": -1},
        "B": {"top_p": None, "learning_rate": 0.1, "other": 1},
    }
    assert first_settings(settings) == {"learning_rate": 0.1, "seed": 0}
