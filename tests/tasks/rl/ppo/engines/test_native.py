"""Rollout engines: samples, their log-probabilities, and that the company a prompt keeps changes
nothing.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from hfstack.errors import DataError
from hfstack.tasks.causal_lm.decoding import decode
from hfstack.tasks.causal_lm.decoding.draw import SamplingSettings
from hfstack.tasks.rl.ppo.actor_critic import ActorCritic
from hfstack.tasks.rl.ppo.batching import Sequences, score_completions
from hfstack.tasks.rl.ppo.engines import native as sampling
from hfstack.tasks.rl.ppo.engines.interface import (
    GenerateEngine,
    Rollout,
    RolloutEngine,
    check_rollout,
)
from hfstack.tasks.rl.ppo.engines.native import NativeEngine
from tests.tiny_ppo import architecture

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15, 16], [17, 18], [8], [40, 41, 42, 43]]


def settings(**changes) -> SamplingSettings:
    return SamplingSettings(
        **({"max_new_tokens": 12, "stop_token_ids": (0,), "pad_token_id": 1} | changes)
    )


def often_stopping(model: torch.nn.Module, *stops: int) -> ActorCritic:
    """A policy that ends about a tenth of its completions at each token."""
    actor_critic = ActorCritic(model, head_init_std=0.3).eval()
    head = actor_critic.base.get_output_embeddings()
    plain = head.forward
    boost = torch.zeros(head.weight.shape[0])
    boost[list(stops)] = 2.4

    head.forward = lambda hidden: plain(hidden) + boost
    return actor_critic


@pytest.mark.parametrize("name", ["llama", "gpt2", "gru"])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_log_probs_of_samples_are_those_of_a_forward_pass(
    name: str,
    batch_size: int | None,
    tiny_tokenizer,
    tiny_llama: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Prompts are padded on the left here and finished rows leave, and neither shows."""
    monkeypatch.setitem(sampling._STEP_TOKENS, "cpu", 10**6 if batch_size is None else 0)
    actor_critic = often_stopping(architecture(name, tiny_tokenizer, tiny_llama), 0, 3)
    torch.manual_seed(0)
    chosen = settings(batch_size=batch_size, temperature=0.8, stop_token_ids=(0, 3))
    rollout = NativeEngine(chosen).generate(actor_critic, PROMPTS * 4)
    check_rollout(rollout, PROMPTS * 4)
    assert {int(row[-1]) for row in rollout.completion_ids} >= {0, 3}
    for row, finished in zip(rollout.completion_ids, rollout.finished, strict=True):
        assert not ({0, 3} & set(row[:-1].tolist())) and (int(row[-1]) in (0, 3)) == bool(finished)
        assert len(row) == 12 or finished
    lengths = [len(row) for row in rollout.completion_ids]
    assert min(lengths) < 4 and max(lengths) == 12, "some leave early, some never end"
    sequences = Sequences.join(PROMPTS * 4, rollout.completion_ids, 1)
    with torch.no_grad():
        expected = score_completions(
            lambda batch: actor_critic(*batch, temperature=0.8),
            sequences,
            device=torch.device("cpu"),
        )
    assert rollout.log_probs is not None and rollout.values is not None
    for row, length in enumerate(lengths):
        assert torch.allclose(
            rollout.log_probs[row], expected["log_probs"][row, :length], atol=2e-5
        )
        assert torch.allclose(rollout.values[row], expected["values"][row, :length], atol=2e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gru"])
def test_a_prompt_is_read_once_for_all_its_answers(
    name: str, tiny_tokenizer, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sampling._STEP_TOKENS, "cpu", 10**6)  # all in one batch
    actor_critic = often_stopping(architecture(name, tiny_tokenizer, tiny_llama), 0)
    plain, shapes = actor_critic.decode_step, []

    def record(tokens: torch.Tensor, *given: Any, **named: Any) -> Any:
        shapes.append(tuple(tokens.shape))
        return plain(tokens, *given, **named)

    monkeypatch.setattr(actor_critic, "decode_step", record)
    prompts = [PROMPTS[0]] * 3 + [PROMPTS[1]] * 3 + [PROMPTS[2]]
    torch.manual_seed(0)
    together = NativeEngine(settings()).generate(actor_critic, prompts)
    assert shapes[:2] == [(3, 8), (7, 1)], "three prompts, then seven answers"
    assert len({tuple(row.tolist()) for row in together.completion_ids[:3]}) > 1

    # read again for each answer, with the same random numbers
    class Apart(tuple):
        __hash__, __eq__ = object.__hash__, object.__eq__

    monkeypatch.setattr(decode, "tuple", Apart, raising=False)
    torch.manual_seed(0)
    apart = NativeEngine(settings()).generate(actor_critic, prompts)
    for mine, theirs in zip(together.completion_ids, apart.completion_ids, strict=True):
        assert torch.equal(mine, theirs)
    assert (7, 8) in shapes


@pytest.mark.parametrize("engine", [NativeEngine, GenerateEngine])
def test_padding_with_a_stop_token_cuts_no_completion(engine: type, tiny_llama: Path):
    """Where pad is eos, an attention mask made of `ids != pad` would hide real ends (TRL's PPO)."""
    actor_critic = often_stopping(AutoModelForCausalLM.from_pretrained(tiny_llama), 0, 7)
    torch.manual_seed(0)
    made: RolloutEngine = engine(settings(pad_token_id=0, stop_token_ids=(0, 7), batch_size=5))
    rollout = made.generate(actor_critic, PROMPTS * 4)
    check_rollout(rollout, PROMPTS * 4)
    assert {0, 7} <= {int(row[-1]) for row in rollout.completion_ids}
    for row, finished in zip(rollout.completion_ids, rollout.finished, strict=True):
        assert (int(row[-1]) in (0, 7)) == bool(finished) and not ({0, 7} & set(row[:-1].tolist()))


def test_every_process_takes_as_many_steps(tiny_llama: Path):
    """With sharded weights each step needs all processes, so a batch that is done goes on with the
    others.
    """
    actor_critic = often_stopping(AutoModelForCausalLM.from_pretrained(tiny_llama), *range(30))
    steps: list[int] = []
    plain = actor_critic.decode_step
    actor_critic.decode_step = lambda *given, **named: (
        steps.append(len(given[0])),
        plain(*given, **named),
    )[1]
    torch.manual_seed(0)
    alone = NativeEngine(settings(max_new_tokens=64, stop_token_ids=tuple(range(30)))).generate(
        actor_critic, PROMPTS
    )
    assert len(steps) < 64
    steps.clear()
    torch.manual_seed(0)
    chosen = settings(max_new_tokens=64, stop_token_ids=tuple(range(30)))
    together = NativeEngine(chosen, max_over_processes=lambda count: 1).generate(
        actor_critic, PROMPTS
    )
    assert len(steps) == 64 and min(steps) >= 1
    assert [row.tolist() for row in together.completion_ids] == [
        row.tolist() for row in alone.completion_ids
    ]
    assert torch.equal(together.finished, alone.finished)


def test_engines_that_break_their_word_are_named():
    one = torch.tensor([4, 5])
    with pytest.raises(DataError, match="a completion of zero tokens for prompt 2 of 2"):
        check_rollout(Rollout([one, one[:0]], torch.tensor([True, True])), ["a", "b"])
    with pytest.raises(DataError, match="returned 1 completions for 2 prompts"):
        check_rollout(Rollout([one], torch.tensor([True])), ["a", "b"])
    with pytest.raises(DataError, match="log_probs do not have one entry for each token"):
        check_rollout(Rollout([one], torch.tensor([True]), log_probs=[torch.zeros(3)]), ["a"])


@pytest.mark.parametrize("engine", [NativeEngine, GenerateEngine])
def test_nothing_of_the_models_generation_config_is_sampled_with(engine: type, tiny_llama: Path):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    own = {"top_k": 1, "min_p": 0.9, "repetition_penalty": 5.0, "suppress_tokens": [*range(2, 200)]}
    for name, value in own.items():
        setattr(model.generation_config, name, value)
    actor_critic = ActorCritic(model, head_init_std=0.3).eval()
    torch.manual_seed(0)
    made: RolloutEngine = engine(settings(max_new_tokens=1))
    rollout = made.generate(actor_critic, [[50, 60, 70]] * 3000)

    with torch.no_grad():
        expected = model(torch.tensor([[50, 60, 70]])).logits[0, -1].softmax(-1) * 3000  # (V,)
    seen = torch.bincount(torch.cat(rollout.completion_ids), minlength=len(expected))  # (V,)
    free = len(expected) - 1
    chi_square = float(((seen - expected) ** 2 / expected).sum())
    assert abs(chi_square - free) < 4 * (2 * free) ** 0.5
    assert model.generation_config.suppress_tokens == own["suppress_tokens"]
