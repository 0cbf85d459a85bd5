"""Numbers are shown with a unit and few digits."""

import math

from hfstack.drawing.numbers import duration, instant, metric, number, size


def test_numbers_have_units_and_few_digits() -> None:
    assert str(metric("tokens_per_s", 18213.4)) == "18.2k tokens/s"
    assert str(metric("eval_loss", 1.64123)) == "1.641 nats/token"
    assert str(metric("mfu", 0.1123)) == "11.2 %"
    found = metric("eval_samples_per_second", 48.94)
    assert found == ("Held-out samples per second", "48.9", "samples/s")
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
