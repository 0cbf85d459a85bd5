"""Agreement: Krippendorff's own example, the package, and intervals that cover the truth."""

import krippendorff
import numpy
import pytest

from hfstack.feedback.agreement import alpha, alpha_interval, raw_agreement

# Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability", section D: four observers,
# twelve units, values missing; nominal 0.743, ordinal 0.815.
NAN = float("nan")
EXAMPLE = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
    [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
]
UNITS = {unit: [row[unit] for row in EXAMPLE if not numpy.isnan(row[unit])] for unit in range(12)}


@pytest.mark.parametrize(("level", "known"), [("nominal", 0.743), ("ordinal", 0.815)])
def test_alpha_is_krippendorffs_and_the_packages(level, known: float) -> None:
    found = alpha(UNITS, level)
    assert found == pytest.approx(known, abs=5e-4)
    package = krippendorff.alpha(reliability_data=EXAMPLE, level_of_measurement=level)
    assert found == pytest.approx(package, abs=1e-12)


def test_raw_agreement_by_hand() -> None:
    # one pair of two equal; of three judgements one pair of three equal
    assert raw_agreement({"a": [1, 1], "b": [0, 0, 1], "c": [1]}) == (1 + 1) / (1 + 3)
    assert raw_agreement({"c": [1]}) is None


def test_what_is_not_defined_is_none() -> None:
    assert alpha({"a": [1.0], "b": [0.0]}, "nominal") is None
    assert alpha({"a": [1.0, 1.0], "b": [1.0, 1.0]}, "nominal") is None
    assert alpha_interval({"a": [1.0, 1.0]}, "nominal") is None


def test_the_interval_narrows_with_more_units_and_covers_the_value() -> None:
    generator = numpy.random.default_rng(0)

    def two_people(units: int) -> dict[int, list[float]]:
        truth = generator.integers(0, 2, units)
        slips = generator.random((units, 2)) < 0.1
        return {unit: [float(truth[unit] ^ slip) for slip in slips[unit]] for unit in range(units)}

    # with 10 % slips two people agree in 0.82 of all, against 0.5 by chance: alpha is 0.64
    small, large = (alpha_interval(two_people(units), "nominal", draws=200) for units in (50, 800))
    assert small is not None and large is not None
    assert small[1] - small[0] > 2 * (large[1] - large[0])
    assert small[0] < 0.64 < small[1] and large[0] < 0.64 < large[1]
