"""Decode completions of many prompts, which join and leave the batch as it goes.

A prompt that is there several times is read once. Finished completions give their slots to prompts
that wait, or leave the batch. Each completion has its own random numbers, drawn before the first
step, so that its tokens do not depend on which others are decoded beside it.

Legend: N completions, r of them in slots, k that join at once, u different prompts, P tokens of the
longest prompt, T tokens of the longest completion, S columns of the cache so far, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import Cache

from hfstack.tasks.causal_lm.decoding.draw import SamplingSettings, sample_tokens
from hfstack.tasks.causal_lm.decoding.graphs import GraphedSteps
from hfstack.tasks.causal_lm.decoding.slots import BUCKET, SlotCache, layers_of_keys_and_values
from hfstack.tasks.causal_lm.decoding.step import DecodeStep, DecodingStep

# Slots are given to others once fewer than this share of them are still generated.
_MIN_ACTIVE_SHARE = 0.7

# Steps between two looks at what is finished: each look waits for an accelerator.
_STEPS_PER_LOOK = {"cpu": 1}
_STEPS_PER_LOOK_ACCELERATOR = 8


class Completions(NamedTuple):
    """What was generated, in the prompts' order, on the CPU."""

    tokens: Tensor  # (N, T), a stop token that was generated is the last one
    log_probs: Tensor  # (N, T)
    values: Tensor  # (N, T), or (N, 0) where the step returns none
    lengths: Tensor  # (N,)
    finished: Tensor  # (N,) bool: ended by a stop token, not by length


class Decoder:
    """Completions that are being decoded, and the slots of the unfinished.

    Args:
        step: one step of the model.
        settings: how to sample.
        config: the model's; None where it makes caches of its own kind.
        device: the model's.
        max_over_processes: the largest of a number over all processes, when the weights are sharded
            over them: every process then takes as many steps as the slowest, since each step
            gathers weights. None otherwise.
        generator: of the random numbers; None for torch's own.
        graphs: of the step, which are replayed where they can be; None for none.
    """

    def __init__(
        self,
        step: DecodeStep,
        settings: SamplingSettings,
        *,
        config: PretrainedConfig | None,
        device: torch.device,
        max_over_processes: Callable[[int], int] | None = None,
        generator: torch.Generator | None = None,
        graphs: GraphedSteps | None = None,
    ) -> None:
        self._step = step
        self._settings = settings
        self._config = config
        self.device = device
        self._largest = max_over_processes
        self._generator = generator

        # Only a cache of slots takes others in; with sharded weights all processes begin together.
        self._layers = None if config is None else layers_of_keys_and_values(config)
        self.refills = self._layers is not None and max_over_processes is None
        self._graphs = graphs if self.refills else None
        self._steps_per_look = _STEPS_PER_LOOK.get(device.type, _STEPS_PER_LOOK_ACCELERATOR)

    @torch.no_grad()
    def decode(
        self, prompt_ids: Sequence[Sequence[int]], chunks: Sequence[Sequence[int]]
    ) -> Completions:
        """Generate one completion for each prompt.

        Args:
            prompt_ids: tokens of N prompts, none of them empty.
            chunks: rows whose prompts are read together, each a chunk of similar lengths.
        """
        self._begin(prompt_ids, chunks)
        width = self._settings.max_new_tokens

        while self._admit() or len(self._slots["live"]):
            live = int(self._slots["live"].sum())
            if self._count_over_processes(live) == 0:
                self._release(0)
                continue

            if 0 < live < _MIN_ACTIVE_SHARE * len(self._slots["live"]):
                self._release(live)
                self._admit()

            # Without refilling all slots have sampled as many tokens.
            steps = self._steps_per_look
            for _ in range(steps if self.refills else min(steps, width - self._sampled)):
                self._advance()

        return Completions(
            self._tokens[:, :width].cpu(),
            self._log_probs[:, :width].cpu(),
            self._values[:, :width].cpu(),
            self._lengths.cpu(),
            self._finished.cpu(),
        )

    def _begin(self, prompt_ids: Sequence[Sequence[int]], chunks: Sequence[Sequence[int]]) -> None:
        """Prepare tables for all completions; no slot is taken yet."""
        count, device = len(prompt_ids), self.device
        self._prompt_ids = prompt_ids
        self._most = min(self._settings.batch_size or count, count)

        # Prompts that join later must fit into the columns of those before: the longest first.
        longest = [max(len(prompt_ids[row]) for row in chunk) for chunk in chunks]
        order = sorted(range(len(chunks)), key=lambda index: -longest[index])
        self._queue = [list(chunks[index]) for index in order]

        # One column more, for what is decoded before it is seen that a completion has ended.
        shape = (count, self._settings.max_new_tokens + 1)
        self._tokens = torch.full(shape, self._settings.pad_token_id, device=device)  # (N, T + 1)
        self._log_probs = torch.zeros(shape, device=device)  # (N, T + 1)
        self._values = torch.zeros(count, 0, device=device)  # (N, T + 1) once there are values
        self._lengths = torch.zeros(count, dtype=torch.long, device=device)  # (N,)
        self._finished = torch.zeros(count, dtype=torch.bool, device=device)  # (N,)
        self._stops = torch.tensor(self._settings.stop_token_ids, device=device)

        self._uniform = None
        if self._settings.temperature > 0:
            kind = {"dtype": torch.float64, "device": device}
            self._uniform = torch.rand(shape, generator=self._generator, **kind)  # (N, T + 1)

        self._slots = {"live": torch.zeros(0, dtype=torch.bool, device=device)}
        self._cache: Cache | None = None
        if self._layers is not None:
            columns = max(longest) + self._settings.max_new_tokens
            opens = SlotCache if self._graphs is None else self._graphs.open_cache
            self._cache = opens(self._layers, slots=self._most, columns=columns)

    def _count_over_processes(self, live: int) -> int:
        """Return the largest number of completions that a process still generates."""
        if self._largest is None:
            return live
        return 0 if self._sampled == self._settings.max_new_tokens else self._largest(live)

    def _admit(self) -> bool:
        """Let prompts that wait take what slots are free; return whether any did."""
        taken = len(self._slots["live"])
        free = self._most - taken if self.refills or taken == 0 else 0
        joined = False

        while self._queue and free > 0 and (self.refills or not joined):
            chunk = self._queue.pop(0)
            if len(chunk) > free:
                self._queue.insert(0, chunk[free:])
            self._join(chunk[:free])
            free -= len(chunk)
            joined = True

        return joined

    def _join(self, rows: list[int]) -> None:
        """Read the prompts of some rows, each of them once, and sample their first tokens."""
        if len(self._slots["live"]) == 0:
            self._slots, self._padded, self._filled, self._sampled = {}, False, 0, 1

        places: dict[tuple[int, ...], int] = {}  # of each different prompt, in order
        prompts = [tuple(self._prompt_ids[row]) for row in rows]
        indices = [places.setdefault(prompt, len(places)) for prompt in prompts]
        prompt_of = torch.tensor(indices, device=self.device)  # (k,)

        step = self._read(list(places))
        if isinstance(self._cache, SlotCache):
            self._cache.add(step.cache, prompt_of)
        else:
            if len(places) < len(rows):
                step.cache.batch_select_indices(prompt_of)
            self._cache = step.cache

        self._filled = max(self._filled, max(map(len, prompts)))
        starts = [self._filled - len(prompt) for prompt in prompts]
        self._padded = self._padded or max(starts) > 0
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        joining = {
            "row": torch.tensor(rows, device=self.device),  # (k,) each
            "start": self._filled - lengths,  # first column
            "before": lengths - 1,  # position of the last token of the prompt
            "column": torch.zeros_like(lengths),  # tokens sampled
            "live": torch.ones_like(lengths, dtype=torch.bool),
            "ended": torch.zeros_like(lengths, dtype=torch.bool),  # by a stop token
        }

        values = None if step.values is None else step.values[prompt_of]
        self._sample(DecodingStep(step.logits[prompt_of], values, step.cache), joining)
        for name, tensor in joining.items():
            here = self._slots.get(name)
            self._slots[name] = tensor if here is None else torch.cat([here, tensor])

    def _read(self, prompts: list[tuple[int, ...]]) -> DecodingStep:
        """Return the step behind different prompts (u, P), with a cache of theirs alone."""
        tokens, mask = pad_left(prompts, self._settings.pad_token_id)
        padded = not bool(mask.all())
        tokens, mask = tokens.to(self.device), mask.to(self.device)  # (u, P) each
        positions = (mask.cumsum(dim=1) - 1).clamp_min(0)  # (u, P)

        cache = None
        if self._config is not None:
            # with no configuration every layer keeps every column, and so does one of slots
            cache = DynamicCache(config=None if self._layers else self._config)
        return self._step(tokens, positions, attention_mask=mask if padded else None, cache=cache)

    def _advance(self) -> None:
        """Append the last token of each slot, and sample the next."""
        slots, cache = self._slots, self._cache
        if isinstance(cache, SlotCache) and cache.is_full():
            self._make_room(cache)

        self._filled += 1
        positions = slots["before"] + slots["column"]  # (r,)
        if self._graphs is not None and isinstance(cache, SlotCache):
            step = self._replay(self._graphs, cache, positions)
        else:
            step = self._take_step(positions)
        self._sample(step, slots)
        self._sampled += 1

    def _take_step(self, positions: Tensor) -> DecodingStep:
        """Append the last token of each slot at its position (r,)."""
        mask = None
        if self._padded:
            columns = torch.arange(self._filled, device=self.device)  # (S,)
            mask = (columns >= self._slots["start"][:, None]).long()  # (r, S)

        tokens = self._slots["token"][:, None]  # (r, 1)
        step = self._step(tokens, positions[:, None], attention_mask=mask, cache=self._cache)
        self._cache = step.cache
        return step

    def _replay(self, graphs: GraphedSteps, cache: SlotCache, positions: Tensor) -> DecodingStep:
        """Append as `_take_step` does, by a graph where there is one for this size."""
        appended = (self._slots["token"], positions, self._slots["start"])  # (r,) each
        step = graphs.replay(*appended, cache=cache)
        if step is None:
            step = self._take_step(positions)
            graphs.learn(*appended, cache=cache, expected=step)
        return step

    def _sample(self, step: DecodingStep, slots: dict[str, Tensor]) -> None:
        """Sample and record the next token of each slot; say which are still generated."""
        row, column, live = slots["row"], slots["column"], slots["live"]
        uniform = None if self._uniform is None else self._uniform[row, column]  # (r,)
        token, log_probs = sample_tokens(step.logits, self._settings, uniform)  # (r,) each

        # What is behind a completion's end goes to the column after it, which nobody reads.
        self._tokens[row, column] = token
        self._log_probs[row, column] = log_probs
        if step.values is not None:
            if self._values.shape[1] == 0:
                self._values = torch.zeros_like(self._log_probs)
            self._values[row, column] = step.values

        column = column + live
        ended = slots["ended"] | (live & (token[:, None] == self._stops).any(dim=1))
        live = live & ~ended & (column < self._settings.max_new_tokens)
        slots.update(token=token, column=column, ended=ended, live=live)

    def _release(self, count: int) -> None:
        """Record the completions that are finished, and free their slots; `count` stay."""
        live = self._slots["live"]
        done = (~live).nonzero()[:, 0]
        rows = self._slots["row"][done]
        self._lengths[rows] = self._slots["column"][done]
        self._finished[rows] = self._slots["ended"][done]

        # The last slots move to where others are free.
        kept = live.nonzero()[:, 0]
        if isinstance(self._cache, SlotCache):
            holes, movers = done[done < count], kept[kept >= count]
            self._cache.keep(count, holes=holes, movers=movers)
            for name, tensor in self._slots.items():
                tensor[holes] = tensor[movers]
                self._slots[name] = tensor[:count]
        else:
            if count and self._cache is not None:
                self._cache.batch_select_indices(kept)
            self._slots = {name: tensor[kept] for name, tensor in self._slots.items()}

    def _make_room(self, cache: SlotCache) -> None:
        """Give the next token a column: drop unused first ones, or grow."""
        unused = 0
        if self._padded:
            starts, live = self._slots["start"], self._slots["live"]
            unused = int(starts.masked_fill(~live, self._filled).min())

        # Those that wait must still fit; a few columns are not worth the copy.
        waiting = (len(self._prompt_ids[row]) for chunk in self._queue for row in chunk)
        unused = min(unused, self._filled - max(waiting, default=0))
        unused = unused if unused >= BUCKET else 0

        cache.drop_columns(unused)
        self._slots["start"] = self._slots["start"] - unused
        self._filled -= unused


def pad_left(sequences: Sequence[Sequence[int]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask, (b, P) each on the CPU, padded on the left."""
    width = max(len(sequence) for sequence in sequences)
    tokens = torch.full((len(sequences), width), pad_token_id)  # (b, P)
    mask = torch.zeros_like(tokens)  # (b, P)

    for row, sequence in enumerate(sequences):
        tokens[row, width - len(sequence) :] = torch.tensor(sequence)
        mask[row, width - len(sequence) :] = 1

    return tokens, mask
