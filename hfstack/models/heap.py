"""What the heap of the GNU C library holds for tensors that come and go: more than the tensors do.

On Linux torch takes the memory of CPU tensors from `posix_memalign`. A freed block that lies between others stays with
the process, and serves a later tensor only where it is large enough. The rules are simulated here for blocks of
tensors, as glibc 2.36 has them (malloc/malloc.c: `_int_memalign`, `_int_malloc`, `sysmalloc`, `_int_free`, `systrim`);
from 2.38 on it looks for an aligned place within a hole first, and should hold less.

Each tensor comes with small objects that live as long as it does. `posix_memalign` leaves slack around the tensor's
block, they move in, and once the block is free it is too small for another tensor of the same size: that is what makes
a heap of tensors grow. Where pieces of slack lie free from earlier on, small objects take those, so the growth ends.
"""

import bisect
import os
import platform
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

_HEADER, _GRAIN, _SMALLEST = 8, 16, 32  # of a chunk, in bytes, on 64 bits
_PAGE, _TOP_PAD = 4096, 128 * 1024
_FIRST_THRESHOLD, _LAST_THRESHOLD = 128 * 1024, 32 * 2**20
_SLACK = (
    64 + _SMALLEST
)  # what `posix_memalign` asks for beyond a size, to find a multiple of 64 within

TAKEN_SHARE = 0.6
"""Share of tensors with a small object that needs such a piece: the one number that is fitted, to the first 16 rows of
the table in docs/recipes/plan.md. Without glibc's cache of small chunks, slack is joined to its block again at once."""

COMPACT = "GLIBC_TUNABLES=glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"
"""What a shell sets so that a process keeps no small chunks apart: less memory, a little more time."""


@dataclass(frozen=True)
class HeapRules:
    """How the heap of a process is told to behave."""

    mmap_threshold: int | None = None
    """Blocks of so many bytes are mapped one by one and given back when freed. None: begins at 128 KiB and rises to the
    largest mapped block that was freed, up to 32 MiB."""
    trim_threshold: int | None = None
    """Free bytes at the heap's end from which on they are given back; None: twice the other threshold."""
    taken_share: float = TAKEN_SHARE


def heap_rules(environment: dict[str, str] | None = None) -> HeapRules | None:
    """Return the rules of a process that starts in this environment; None where the C library is not glibc.

    Known are `MALLOC_MMAP_THRESHOLD_`, `MALLOC_TRIM_THRESHOLD_` and, in `GLIBC_TUNABLES`, `mmap_threshold`,
    `trim_threshold` and `tcache_count=0`.
    """
    if platform.libc_ver()[0] != "glibc":
        return None
    values = os.environ if environment is None else environment
    tunables = dict(re.findall(r"glibc\.malloc\.(\w+)=(\w+)", values.get("GLIBC_TUNABLES", "")))

    def bytes_of(name: str) -> int | None:
        text = tunables.get(name, values.get(f"MALLOC_{name.upper()}_", ""))
        return int(text, 0) if re.fullmatch(r"\d+|0x[0-9a-fA-F]+", text) else None

    mapped, trimmed = bytes_of("mmap_threshold"), bytes_of("trim_threshold")
    if trimmed is not None and mapped is None:
        mapped = _FIRST_THRESHOLD  # setting either ends the adjusting of both
    if mapped is not None and trimmed is None:
        trimmed = _FIRST_THRESHOLD
    return HeapRules(mapped, trimmed, 0.0 if tunables.get("tcache_count") == "0" else TAKEN_SHARE)


@dataclass(slots=True, eq=False)
class _Block:
    address: int
    size: int
    slack: int = 0
    """Bytes at its end that are a small object's, and stay apart when the block is freed."""
    has_piece: bool = False
    """Whether a small object lives as long as this block, in its own slack or another's."""
    mapped: bool = False
    free: bool = False
    before: "_Block | None" = field(default=None, repr=False)
    after: "_Block | None" = field(default=None, repr=False)


class Heap:
    """One heap that grows at its end; `peak` is the most that was resident, in bytes."""

    def __init__(self, rules: HeapRules) -> None:
        self.peak = 0
        self._rules = rules
        self._threshold = _FIRST_THRESHOLD if rules.mmap_threshold is None else rules.mmap_threshold
        self._trim = _FIRST_THRESHOLD if rules.trim_threshold is None else rules.trim_threshold
        self._random = random.Random(0)
        self._free: list[
            tuple[int, int]
        ] = []  # size and address, sorted: the best fit is the first that is enough
        self._blocks: dict[int, _Block] = {}  # the free ones, by address
        self._last: _Block | None = None
        self._top = self._end = self._touched = self._mapped = self._free_pieces = 0

    def allocate(self, size: int) -> _Block:
        """Take a block of so many bytes."""
        needed = max(_SMALLEST, _round_up(size + _HEADER, _GRAIN))
        asked = needed + _SLACK
        index = bisect.bisect_left(self._free, (asked, -1))
        if index < len(self._free):
            block = self._take(self._blocks[self._free[index][1]])
            self._house(block)
            self._split(block, needed + block.slack)
        elif self._end - self._top < asked + _SMALLEST and asked >= self._threshold:
            block = _Block(-1, _round_up(asked, _PAGE), mapped=True)
            self._mapped += _round_up(
                size, _PAGE
            )  # pages that are never written to are never there
            self._note()
        else:
            missing = asked + _SMALLEST - (self._end - self._top)
            if missing > 0:
                self._end += _round_up(missing + _TOP_PAD, _PAGE)
            block = _Block(self._top, needed)
            self._house(block)
            block.size += block.slack
            self._append(block)
        return block

    def free(self, block: _Block, size: int) -> None:
        """Give back a block that was allocated for so many bytes."""
        if block.mapped:
            self._mapped -= _round_up(size, _PAGE)
            if (
                self._rules.mmap_threshold is None
                and self._threshold < block.size <= _LAST_THRESHOLD
            ):
                self._threshold, self._trim = block.size, 2 * block.size
            return
        self._free_pieces += block.has_piece
        if block.slack:
            self._cut(block, block.size - block.slack)
            block.slack = 0
        block = self._merge(block)
        if block.after is not None:
            block.free = True
            self._offer(block)
            return
        self._last, self._top = block.before, block.address
        if self._last is not None:
            self._last.after = None
        spare = self._end - self._top
        if spare >= self._trim:
            self._end -= max(0, spare - _TOP_PAD - _SMALLEST) // _PAGE * _PAGE
            self._touched = min(self._touched, self._end)

    def _house(self, block: _Block) -> None:
        """Find room for the small object that comes with the block, if any: a free piece, else the block's slack."""
        block.has_piece = self._random.random() < self._rules.taken_share
        if block.has_piece and self._free_pieces:
            self._free_pieces -= 1
        elif block.has_piece:
            block.slack = _SLACK

    def _append(self, block: _Block) -> None:
        block.before = self._last
        if self._last is not None:
            self._last.after = block
        self._last, self._top = block, self._top + block.size
        self._touched = max(self._touched, self._top)
        self._note()

    def _merge(self, block: _Block) -> _Block:
        """Join a block with its free neighbours; the joint block is not yet offered."""
        if block.before is not None and block.before.free:
            before = self._take(block.before)
            self._swallow(before, block)
            block = before
        if block.after is not None and block.after.free:
            self._swallow(block, self._take(block.after))
        return block

    def _swallow(self, block: _Block, after: _Block) -> None:
        block.size, block.after = block.size + after.size, after.after
        if after.after is None:
            self._last = block
        else:
            after.after.before = block

    def _split(self, block: _Block, size: int) -> None:
        """Keep so many bytes of a block and offer the rest, where there is enough for a chunk."""
        if block.size - size >= _SMALLEST:
            rest = self._cut(block, size)
            rest.free = True
            self._offer(rest)

    def _cut(self, block: _Block, size: int) -> _Block:
        rest = _Block(block.address + size, block.size - size, before=block, after=block.after)
        if rest.after is None:
            self._last = rest
        else:
            rest.after.before = rest
        block.size, block.after = size, rest
        return rest

    def _offer(self, block: _Block) -> None:
        bisect.insort(self._free, (block.size, block.address))
        self._blocks[block.address] = block

    def _take(self, block: _Block) -> _Block:
        del (
            self._free[bisect.bisect_left(self._free, (block.size, block.address))],
            self._blocks[block.address],
        )
        block.free = False
        return block

    def _note(self) -> None:
        self.peak = max(self.peak, self._touched + self._mapped)


def heap_peak(events: Iterable[tuple[int, int]], rules: HeapRules) -> int:
    """Return the most bytes that are resident for a series of storages.

    Args:
        events: (key, bytes) of a storage that comes, (key, -1) of one that goes.
        rules: of the heap.
    """
    heap, live = Heap(rules), dict[int, tuple[_Block, int]]()
    for key, size in events:
        if size > 0:
            live[key] = heap.allocate(size), size
        elif key in live:
            heap.free(*live.pop(key))
    return heap.peak


def _round_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
