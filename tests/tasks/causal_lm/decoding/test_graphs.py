"""Steps that are replayed give what steps that are taken give, with a stand-in for CUDA graphs.

The stand-in records the operations of a step with the tensors that they read and write, and does
them again: like a graph it knows no Python, no other shapes and no other addresses, and it fails
where a value would be waited for.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import MistralConfig

from hfstack.tasks.causal_lm.decoding import decode, graphs, slots
from hfstack.tasks.causal_lm.decoding.decode import Completions, Decoder
from hfstack.tasks.causal_lm.decoding.draw import SamplingSettings
from hfstack.tasks.causal_lm.decoding.graphs import CudaCapture, GraphedSteps
from hfstack.tasks.rl.ppo.actor_critic import ActorCritic
from hfstack.tasks.rl.ppo.engines.native import NativeEngine
from tests.tasks.causal_lm.decoding.test_decode import (
    CONFIGS,
    LONGEST,
    SMALL,
    WINDOW,
    policy,
    prompts,
)

SETTINGS = SamplingSettings(LONGEST, stop_token_ids=(0, 3), pad_token_id=1, batch_size=6)
PROMPTS = 20
WAIT = "a step waits for a value"


class Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError(WAIT)
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out


class Stand:
    """Captures on a CPU, and counts what it captured."""

    def __init__(self) -> None:
        self.captured = 0
        self.replayed = 0

    def __call__(self, run: Callable[[], None], /) -> Callable[[], None]:
        with graphs._as_in_capture():
            run()  # as before a capture, where results are of no use
            with Recorder() as recorder:
                run()
        self.captured += 1

        def replay() -> None:
            self.replayed += 1
            for func, args, kwargs, out in recorder.calls:
                again = func(*args, **kwargs)
                for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)

        return replay


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch: pytest.MonkeyPatch):
    for module in (slots, decode):
        monkeypatch.setattr(module, "BUCKET", 4)
    monkeypatch.setattr(graphs, "_BUCKET_COLUMNS", 8)


def step_of(actor_critic: ActorCritic) -> Any:
    return partial(actor_critic.decode_step, with_values=True)


def run(actor_critic: ActorCritic, graphed: GraphedSteps | None = None) -> Completions:
    asked = prompts(PROMPTS)
    order = sorted(range(len(asked)), key=lambda row: len(asked[row]))
    torch.manual_seed(0)
    decoder = Decoder(
        step_of(actor_critic),
        SETTINGS,
        config=actor_critic.base.config,
        device=torch.device("cpu"),
        graphs=graphed,
    )
    return decoder.decode(asked, [order[first : first + 6] for first in range(0, len(order), 6)])


def same(found: Completions, expected: Completions) -> None:
    assert torch.equal(found.lengths, expected.lengths)
    assert torch.equal(found.finished, expected.finished)
    # what is behind an end depends on when it was seen
    inside = torch.arange(LONGEST) < expected.lengths[:, None]  # (N, T)
    assert torch.equal(found.tokens[inside], expected.tokens[inside])
    for one, other in zip(found[1:3], expected[1:3], strict=True):
        torch.testing.assert_close(one[inside], other[inside], atol=3e-5, rtol=0)


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.name.startswith("hfstack")]


@pytest.mark.parametrize("name", ["rotary", "learned positions", "some layers with a window"])
def test_replayed_steps_are_those_that_are_taken(name: str, caplog: pytest.LogCaptureFixture):
    actor_critic, stand = policy(name), Stand()
    graphed = GraphedSteps(step_of(actor_critic), actor_critic.base, stand)
    expected = run(actor_critic)

    same(run(actor_critic, graphed), expected)
    if "window" in name:
        # the first bucket has more columns than a window, which moves with each token
        assert WINDOW < 8 and stand.captured == 0
        return
    assert not warned(caplog)
    once = stand.captured
    assert once > 3 and stand.replayed > 4 * once
    rows = {rows for rows, _ in graphed._graphs}
    assert (
        len(rows) > 1
        and rows <= {1, 2, 4, 6}
        and len({columns for _, columns in graphed._graphs}) > 2
    )

    # the next rollout captures no bucket again, and sees the weights that training has changed
    with torch.no_grad():
        for weight in actor_critic.parameters():
            weight += 0.05 * torch.randn_like(weight)
    changed = run(actor_critic)
    assert not torch.equal(changed.tokens, expected.tokens)
    same(run(actor_critic, graphed), changed)
    once = stand.captured
    assert once == len(graphed._graphs)

    # weights that lie elsewhere are captured again
    for weight in actor_critic.parameters():
        weight.data = weight.data.clone()
    same(run(actor_critic, graphed), changed)
    assert stand.captured - once == len(graphed._graphs) > 3


def test_a_window_that_is_longer_than_a_bucket(monkeypatch: pytest.MonkeyPatch):
    """Steps are replayed until the columns leave the window, and taken after it."""
    config = MistralConfig(**SMALL, sliding_window=17)
    monkeypatch.setitem(CONFIGS, "a sliding window", lambda: config)
    actor_critic, stand = policy("a sliding window"), Stand()
    graphed = GraphedSteps(step_of(actor_critic), actor_critic.base, stand)
    same(run(actor_critic, graphed), run(actor_critic))
    assert max(columns for _, columns in graphed._graphs) == 16


def test_autocast_casts_the_weights_of_now():
    actor_critic, stand = policy("rotary"), Stand()
    graphed = GraphedSteps(step_of(actor_critic), actor_critic.base, stand)
    alike, before, different = [], None, 0.0
    for shift in (0.0, 0.1):
        with torch.no_grad():
            for weight in actor_critic.parameters():
                weight += shift
        with torch.autocast("cpu", dtype=torch.bfloat16):
            expected, found = run(actor_critic), run(actor_critic, graphed)
        # rounding to 16 bits lets a few answers diverge, and other weights let all of them
        alike.append(float((found.tokens == expected.tokens).float().mean()))
        different = before is not None and (found.tokens == before).float().mean()
        before = found.tokens
    assert min(alike) > 0.8 and 0 < different < 0.6
    once = stand.captured

    # a graph of 16 bits is none of 32
    same(run(actor_critic, graphed), run(actor_critic))
    assert stand.captured > once


def waits(step: Any, tokens: torch.Tensor, *given: Any, **named: Any) -> Any:
    assert int(tokens.sum()) >= 0
    return step(tokens, *given, **named)


def differs(step: Any, tokens: torch.Tensor, *given: Any, **named: Any) -> Any:
    """In a capture alone: every token is the one after it, in all layers' keys too."""
    return step(tokens + torch.cuda.is_current_stream_capturing(), *given, **named)


def is_nan(step: Any, tokens: torch.Tensor, *given: Any, **named: Any) -> Any:
    found = step(tokens, *given, **named)
    if not torch.cuda.is_current_stream_capturing():
        return found
    return found._replace(logits=found.logits * float("nan"))


@pytest.mark.parametrize(
    ("changed", "words"), [(waits, WAIT), (differs, "of a graph differ from"), (is_nan, "nan")]
)
def test_what_a_graph_cannot_hold_is_generated_without(
    changed: Any, words: str, caplog: pytest.LogCaptureFixture
):
    actor_critic, stand = policy("rotary"), Stand()
    graphed = GraphedSteps(partial(changed, step_of(actor_critic)), actor_critic.base, stand)
    expected = run(actor_critic)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            same(run(actor_critic, graphed), expected)

    (said,) = warned(caplog)
    assert words in said and "--rollout_cuda_graphs false" in said
    assert stand.captured <= 1 and stand.replayed <= 1


def test_small_tables_are_kept_and_large_ones_freed():
    actor_critic, stand = policy("rotary"), Stand()
    graphed = GraphedSteps(step_of(actor_critic), actor_critic.base, stand)
    expected = run(actor_critic)
    run(actor_critic, graphed)
    once, cache = stand.captured, graphed._cache
    assert cache is not None
    graphed.close_cache(keep_bytes=10**9)
    assert graphed._cache is cache

    size = 4 * 2 * 2 * cache.slots * cache.columns * 2 * 8  # fp32, 2 layers, keys and values
    assert cache.count_bytes() == size
    graphed.close_cache(keep_bytes=size)  # the logits are kept with them
    assert graphed._cache is None and not graphed._graphs
    same(run(actor_critic, graphed), expected)
    assert stand.captured == 2 * once


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu(dtype: torch.dtype, caplog: pytest.LogCaptureFixture):
    """Generate by real graphs as without, before and after an update, and train in between."""
    actor_critic = policy("rotary")
    cast(Any, actor_critic.base).to(dtype)
    actor_critic.to("cuda")
    plain, graphed = NativeEngine(SETTINGS), NativeEngine(SETTINGS, cuda_graphs=True)

    for _ in range(2):
        torch.manual_seed(0)
        expected = plain.generate(actor_critic, prompts(PROMPTS))
        torch.manual_seed(0)
        found = graphed.generate(actor_critic, prompts(PROMPTS))
        if dtype == torch.float32:
            for one, other in zip(found.completion_ids, expected.completion_ids, strict=True):
                assert torch.equal(one, other)
        assert not warned(caplog)
        # random numbers of the device work, and so does an update
        with torch.no_grad():
            for weight in actor_critic.parameters():
                weight += 0.02 * torch.randn_like(weight)

    assert graphed._graphs is not None and graphed._graphs[1]._graphs
    with pytest.raises(RuntimeError, match="synchroniz"):
        counted = torch.ones(1, device="cuda")
        CudaCapture()(lambda: print(int(counted)))
    assert torch.rand(1, device="cuda") < 1  # after what could not be captured
