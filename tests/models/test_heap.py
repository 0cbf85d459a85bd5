"""The simulated heap keeps glibc's rules, and holds what a real process holds."""

import json
import os
import platform
import subprocess
import sys

import pytest

from hfstack.models.heap import TAKEN_SHARE, Heap, HeapRules, heap_peak, heap_rules

KIB, MIB = 2**10, 2**20
PLAIN = HeapRules(mmap_threshold=64 * MIB, trim_threshold=64 * MIB, taken_share=0.0)
NEAR = 256 * KIB  # what the heap's end is padded with, slack and rounding to pages


def test_a_freed_block_serves_what_fits_with_its_slack() -> None:
    first, other = (1, 8 * MIB), (2, 1 * MIB)
    assert heap_peak([first, other, (1, -1), (3, 8 * MIB - 96)], PLAIN) == pytest.approx(
        9 * MIB, abs=NEAR
    )
    # glibc 2.36 looks for 96 bytes more than it needs, which a lone hole of the same size does not have
    assert heap_peak([first, other, (1, -1), (3, 8 * MIB)], PLAIN) == pytest.approx(
        17 * MIB, abs=NEAR
    )


def test_free_neighbours_are_joined_and_the_best_fit_is_taken() -> None:
    comes = [(1, 4 * MIB), (2, 4 * MIB), (3, MIB), (4, 6 * MIB), (5, MIB)]
    goes = [(1, -1), (2, -1), (4, -1)]  # holes of 8 and 6 MiB
    assert heap_peak([*comes, *goes, (6, 6 * MIB - 96), (7, 8 * MIB - 96)], PLAIN) == pytest.approx(
        16 * MIB, abs=NEAR
    )


def test_the_end_is_given_back_and_large_blocks_are_mapped() -> None:
    trims = HeapRules(mmap_threshold=64 * MIB, trim_threshold=MIB, taken_share=0.0)
    again = [(1, 8 * MIB), (1, -1), (2, 4 * MIB)]
    heap = Heap(trims)
    heap.free(heap.allocate(8 * MIB), 8 * MIB)
    heap.allocate(40 * MIB)
    assert heap.peak == pytest.approx(40 * MIB, abs=NEAR)  # the 8 MiB did not stay below
    assert heap_peak(again, trims) == pytest.approx(8 * MIB, abs=NEAR)
    mapped = HeapRules(mmap_threshold=MIB, trim_threshold=MIB, taken_share=0.0)
    holes = [(1, 8 * MIB), (2, 8 * MIB), (1, -1), (3, 9 * MIB)]
    assert heap_peak(holes, mapped) == pytest.approx(17 * MIB, abs=NEAR)
    assert heap_peak(holes, PLAIN) == pytest.approx(25 * MIB, abs=NEAR)


def test_the_threshold_rises_with_what_was_freed_up_to_a_limit() -> None:
    def second_hole(size: int) -> int:
        learns = [(1, size), (1, -1)]
        return heap_peak(
            [*learns, (2, size), (3, KIB), (2, -1), (4, size + MIB)], HeapRules(taken_share=0.0)
        )

    assert second_hole(8 * MIB) == pytest.approx(
        17 * MIB, abs=NEAR
    )  # from the heap: the hole stays, too small
    assert second_hole(40 * MIB) == pytest.approx(41 * MIB, abs=NEAR)  # over 32 MiB: always mapped


def test_pieces_of_slack_that_are_taken_spoil_holes_until_there_are_enough() -> None:
    def peak(rounds: int, share: float) -> int:
        events: list[tuple[int, int]] = []
        for number in range(rounds):
            first = 100 * number
            events += [(first + index, MIB) for index in range(20)]
            events += [(first + index, -1) for index in range(20)]
        rules = HeapRules(mmap_threshold=64 * MIB, trim_threshold=64 * MIB, taken_share=share)
        return heap_peak([(-1, KIB), *events], rules)

    assert peak(2, 0.0) == pytest.approx(20 * MIB, abs=NEAR)
    assert peak(2, 0.5) > 22 * MIB
    assert peak(80, 0.5) < 1.05 * peak(40, 0.5) < 2 * peak(2, 0.5)  # it settles


@pytest.mark.parametrize(
    ("environment", "rules"),
    [
        ({}, HeapRules()),
        ({"MALLOC_MMAP_THRESHOLD_": "1000000"}, HeapRules(1_000_000, 128 * KIB)),
        ({"MALLOC_TRIM_THRESHOLD_": "4096"}, HeapRules(128 * KIB, 4096)),
        (
            {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.mmap_threshold=0x400000"},
            HeapRules(4 * MIB, 128 * KIB, 0.0),
        ),
        (
            {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=7", "MALLOC_MMAP_THRESHOLD_": "many"},
            HeapRules(),
        ),
    ],
)
def test_rules_are_read_from_the_environment(environment: dict[str, str], rules: HeapRules) -> None:
    if heap_rules({}) is None:
        pytest.skip("the C library here is not glibc")
    assert heap_rules(environment) == rules and rules.taken_share in (0.0, TAKEN_SHARE)


_REAL = """
import json, re, sys, torch
from pathlib import Path
def resident():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
torch.ones(4096).sum()
Path("/proc/self/clear_refs").write_text("5")
before, live = resident(), {}
for key, size in json.load(sys.stdin):
    if size > 0:
        live[key] = torch.zeros(size, dtype=torch.uint8)
    else:
        del live[key]
print(resident() - before)
"""


def test_a_real_process_holds_as_much() -> None:
    """Without glibc's cache of small chunks, where nothing is fitted."""
    if heap_rules({}) is None or not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("needs glibc and Linux's /proc")
    if not (2, 26) <= tuple(map(int, platform.libc_ver()[1].split("."))) < (2, 38):
        pytest.skip(
            f"the rules are glibc 2.36's, here it is {platform.libc_ver()[1]}, which looks for room otherwise"
        )
    events = [(index, (1 + index % 7) * MIB) for index in range(60)]
    events += [(index, -1) for index in range(0, 60, 2)] + [
        (100 + index, (2 + index % 5) * MIB) for index in range(30)
    ]
    live = sum(size for _, size in events[:60])
    tunables = "glibc.malloc.tcache_count=0:glibc.malloc.mmap_threshold=67108864:glibc.malloc.trim_threshold=67108864"
    done = subprocess.run(
        [sys.executable, "-c", _REAL], input=json.dumps(events), capture_output=True, text=True, check=True,
        env=os.environ | {"GLIBC_TUNABLES": tunables, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    rules = heap_rules({"GLIBC_TUNABLES": tunables})
    assert rules is not None
    predicted = heap_peak(events, rules)
    assert predicted > 1.05 * live
    assert int(done.stdout) == pytest.approx(predicted, rel=0.1)
