"""Estimate the electricity that a run took, from its time and hardware.

Nothing is metered. The method is that of Green Algorithms (Lannelongue, Grealey and Inouye 2021,
doi:10.1002/advs.202100707), without the factor for the cooling of a data centre: time x (cores x
watts + accelerators x watts + memory x 0.3725 W/GB), at full load. Accelerators are taken at the
power of their data sheet. The card's template says this as well.
"""

from typing import Any

_WATTS_PER_CORE = 12.0  # Green Algorithms' value for a processor that is not listed
_WATTS_PER_GB = 0.3725
_WATTS_UNKNOWN_ACCELERATOR = 200.0  # the same source's value for one that is not listed

_WATTS = {  # of the board, from the makers' data sheets; the first name that is found counts
    "B200": 1000,
    "H200": 700,
    "H100 PCIe": 350,
    "H100": 700,
    "GH200": 900,
    "A100": 400,
    # of servers, smaller
    "L40S": 350,
    "L40": 300,
    "L4": 72,
    "A10G": 150,
    "A10": 150,
    "A40": 300,
    "A6000": 300,
    "V100": 300,
    "T4": 70,
    "P100": 250,
    # of desks, and of AMD
    "RTX 5090": 575,
    "RTX 4090": 450,
    "RTX 3090": 350,
    "MI300X": 750,
    "MI250": 560,
}


def estimate_kwh(hardware: dict[str, Any], duration_s: float) -> float:
    """Return the estimated energy of one run in kWh.

    Args:
        hardware: of run.json: cores, memory in GiB, and the accelerators by name.
        duration_s: from start to end.
    """
    on_accelerator = str(hardware.get("device", "cpu")) != "cpu"
    accelerators = hardware.get("accelerators") or [] if on_accelerator else []
    watts = _WATTS_PER_CORE * float(hardware.get("cores") or 1)
    watts += sum(accelerator_watts(name) for name in accelerators)
    watts += _WATTS_PER_GB * float(hardware.get("memory_gib") or 0) * 1.073741824
    return watts * duration_s / 3.6e6


def accelerator_watts(name: str) -> float:
    """Return the board power of an accelerator in watts."""
    known = (watts for model, watts in _WATTS.items() if model in name)
    return float(next(known, _WATTS_UNKNOWN_ACCELERATOR))
