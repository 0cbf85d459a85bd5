"""Rewards: what is wrong with one is said in a line that names the sample; models and endpoints are
called alike.
"""

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification, set_seed

from hfstack.errors import CheckpointError, ConfigError, DataError
from hfstack.tasks.rewards.prepare import checked_reward, prepare_rewards, score_all
from hfstack.tasks.rewards.remote import RemoteReward
from hfstack.tasks.rewards.reward_model import RewardModel
from hfstack.tokens.turns import extract_text
from tests.tiny_ppo import TEMPLATE

PROMPTS = ["Count to two.", "Say nothing.", "Name a fox."]
ANSWERS = ["one two", "", "Rusty"]
CHATS = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
TURNS = [[{"role": "assistant", "content": answer}] for answer in ANSWERS]


def length(prompts: list[Any], completions: list[Any]) -> list[float]:
    return [float(len(extract_text(completion))) for completion in completions]


def test_plain_and_conversational_prompts_score_alike() -> None:
    reward = checked_reward(length)
    assert reward(prompts=PROMPTS, completions=ANSWERS) == [7.0, 0.0, 5.0]
    assert reward(prompts=CHATS, completions=TURNS) == [7.0, 0.0, 5.0]
    assert reward.__name__ == "length"


def test_columns_reach_the_function_that_names_them() -> None:
    def matches(prompts, completions, answer) -> list[float]:
        return [float(one == right) for one, right in zip(completions, answer, strict=True)]

    reward = checked_reward(matches)
    assert reward(
        prompts=PROMPTS, completions=ANSWERS, answer=["one two", "x", "y"], other=[1, 2, 3]
    ) == [1.0, 0.0, 0.0]
    with pytest.raises(
        DataError, match=r"'matches' reads the column 'answer'; the rows have: label, other"
    ):
        reward(prompts=PROMPTS, completions=ANSWERS, label=[1], other=[2])


@pytest.mark.parametrize("values", [torch.tensor([1, 2, 3]), (1, 2, 3), [True, 2, 3.0]])
def test_numbers_of_any_kind_become_floats(values: Any) -> None:
    reward = checked_reward(lambda prompts, completions: values)
    assert reward(prompts=PROMPTS, completions=ANSWERS) == [
        1.0,
        2.0,
        3.0,
    ]


def test_none_means_not_applicable() -> None:
    assert checked_reward(lambda prompts, completions: [None, 1, None])(PROMPTS, ANSWERS) == [
        None,
        1.0,
        None,
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            [1.0, float("nan"), 2.0],
            r"returned nan for sample 2 of 3: prompt 'Say nothing.', completion ''; return None",
        ),
        ([1.0, 2.0, float("inf")], r"returned inf for sample 3 of 3: prompt 'Name a fox.'"),
        ([1.0, "good", 2.0], r"returned 'good', not a number, for sample 2"),
        (
            [1.0, 2.0],
            r"returned 2 values for 3 completions; the first without a value is sample 3 of 3: "
            r"prompt 'Name",
        ),
        ([1.0] * 4, r"returned 4 values for 3 completions; the last one is sample 3"),
        (0.5, r"must return a list of numbers, one a completion; got 0.5"),
        (None, r"must return a list of numbers, one a completion; got None"),
    ],
)
def test_what_is_no_reward_is_refused_by_sample(values: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        checked_reward(lambda prompts, completions: values, name="mine")(
            prompts=PROMPTS, completions=ANSWERS
        )
    assert str(caught.value).startswith("reward 'mine'") and "\n" not in str(caught.value)


def test_a_reward_that_raises_names_the_sample_and_the_line() -> None:
    def fragile(prompts, completions, weight, **columns) -> list[float]:
        return [
            share / len(completion) for completion, share in zip(completions, weight, strict=True)
        ]

    expected = (
        r"'fragile' raised ZeroDivisionError: .*\(test_prepare.py:\d+\) for sample 2 of 3: "
        r"prompt 'Say nothing.'"
    )
    with pytest.raises(DataError, match=expected):
        checked_reward(fragile)(prompts=PROMPTS, completions=ANSWERS, weight=[1, 2, 3])


def test_a_reward_that_raises_only_for_the_batch_says_so() -> None:
    def crowded(prompts, completions, **columns) -> list[float]:
        if len(prompts) > 1:
            raise MemoryError("too many")
        return [1.0]

    with pytest.raises(
        DataError,
        match=r"for a batch of 3, and for none of its samples alone; it begins with sample 1",
    ):
        checked_reward(crowded)(prompts=PROMPTS, completions=ANSWERS)


def test_what_cannot_be_called_as_a_reward_is_refused() -> None:
    async def later(prompts, completions) -> list[float]:
        await asyncio.sleep(0)
        return [1.0]

    with pytest.raises(ConfigError, match="is async"):
        checked_reward(later)
    with pytest.raises(
        ConfigError, match=r"must take \(prompts, completions, \*\*columns\), but it takes text"
    ):
        checked_reward(lambda text: [1.0], name="odd")
    with pytest.raises(ConfigError, match="got 3"):
        checked_reward(3)  # pyright: ignore[reportArgumentType]


def test_prepared_rewards_have_different_names_and_as_many_weights() -> None:
    both = prepare_rewards([length, lambda prompts, completions: [1] * len(prompts), length])
    assert [reward.__name__ for reward in both] == ["length_1", "<lambda>", "length_3"]
    with pytest.raises(ConfigError, match="no rewards"):
        prepare_rewards([])
    with pytest.raises(ConfigError, match="2 values for 1 rewards"):
        prepare_rewards([length], weights=[1, 2])


def test_weighted_sums_leave_out_what_does_not_apply() -> None:
    sometimes = checked_reward(lambda prompts, completions: [None, None, 2.0], name="sometimes")
    only_second = checked_reward(lambda prompts, completions: [None, 4.0, None], name="only_second")
    scores = score_all([sometimes, only_second], PROMPTS, ANSWERS, weights=[10, 0.5])
    assert scores.totals == [None, 2.0, 20.0]
    assert scores.each == {"sometimes": [None, None, 2.0], "only_second": [None, 4.0, None]}
    assert score_all([sometimes], PROMPTS, ANSWERS).totals == [None, None, 2.0]
    with pytest.raises(ConfigError, match="1 reward weights for 2 rewards"):
        score_all([sometimes, only_second], PROMPTS, ANSWERS, weights=[1])


@pytest.fixture(scope="module")
def reward_folder(tiny_tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny reward model whose head is saved."""
    set_seed(0)
    folder = tmp_path_factory.mktemp("tiny-reward")
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=tiny_tokenizer.pad_token_id,
    )
    config.num_labels = 1
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def test_a_reward_model_scores_prompt_answer_and_eos_whatever_the_batch(
    reward_folder: Path,
) -> None:
    reward = RewardModel(str(reward_folder), batch_size=2)
    scores = reward(PROMPTS, ANSWERS)
    tokenizer = AutoTokenizer.from_pretrained(reward_folder)
    for prompt, answer, score in zip(PROMPTS, ANSWERS, scores, strict=True):
        ids = torch.tensor([[*tokenizer(prompt + answer)["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            assert reward.model(input_ids=ids).logits.item() == pytest.approx(score, abs=1e-5)
    assert len(set(scores)) == 3
    assert RewardModel(str(reward_folder), as_text=True)(CHATS, TURNS) == pytest.approx(
        scores, abs=1e-5
    )
    assert reward.score(PROMPTS, ANSWERS) == scores

    # training's mixed precision is none of the reward model's
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert reward(PROMPTS, ANSWERS) == scores
    [half] = prepare_rewards([str(reward_folder)], dtype="bfloat16")
    rounded = half(prompts=PROMPTS, completions=ANSWERS)
    assert rounded != scores and rounded == pytest.approx(scores, abs=0.02)


def test_a_reward_model_cuts_long_prompts_and_says_so_once(
    reward_folder: Path, hfstack_log: list[str]
) -> None:
    reward = RewardModel(str(reward_folder))
    long = "z" * 100
    cut = reward.encode(long, "the fox")
    assert len(cut) == 64 and str(reward.tokenizer.decode(cut)).endswith("the fox<|endoftext|>")
    reward.encode(long, "the fox")
    assert sum("reads 64 tokens" in line for line in hfstack_log) == 1


def test_a_truncated_answer_is_read_without_an_end(
    reward_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reward = RewardModel(str(reward_folder))
    eos: Any = reward.tokenizer.eos_token_id
    whole, cut = (reward.encode("who", " the fox", finished=ended) for ended in (True, False))
    assert whole == [*cut, eos] and eos not in cut
    scores = reward(PROMPTS, ANSWERS, finished=[True, False, True])
    ended = reward(PROMPTS, ANSWERS)
    assert [a == pytest.approx(b, abs=1e-5) for a, b in zip(scores, ended, strict=True)] == [
        True,
        False,
        True,
    ]

    # the closing of a turn goes with what the template writes behind it
    monkeypatch.setattr(reward.tokenizer, "chat_template", TEMPLATE)
    turns = [{"role": "user", "content": "who"}], [{"role": "assistant", "content": "the fox"}]
    text = str(reward.tokenizer.decode(reward.encode(*turns, finished=False)))
    assert text.endswith("assistant: the fox")
    assert str(reward.tokenizer.decode(reward.encode(*turns))) == f"{text}<|endoftext|>"


def test_another_vocabulary_is_said(
    reward_folder: Path, tiny_tokenizer, hfstack_log: list[str]
) -> None:
    prepare_rewards([str(reward_folder)], policy_tokenizer=tiny_tokenizer)
    assert any("has the policy's vocabulary" in line for line in hfstack_log)
    other = AutoTokenizer.from_pretrained(reward_folder)
    other.add_tokens(["<|new|>"])
    prepare_rewards([str(reward_folder)], policy_tokenizer=other)
    assert any(
        "a tokenizer of its own (300 tokens, the policy 301)" in line for line in hfstack_log
    )


def test_conversations_need_a_template_of_the_reward_model(reward_folder: Path) -> None:
    with pytest.raises(ConfigError, match="no chat template"):
        RewardModel(str(reward_folder))(CHATS, TURNS)


def test_a_language_model_is_no_reward_model(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError,
        match=r"language model \(LlamaForCausalLM, .* but a reward model is needed here",
    ):
        RewardModel(str(tiny_llama))
    with pytest.raises(CheckpointError):
        RewardModel(str(tmp_path / "nowhere"))


@pytest.fixture
def hfstack_log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The messages that hfstack logs during the test."""
    import logging

    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger = logging.getLogger("hfstack")
    monkeypatch.setattr(logger, "handlers", [Keep()])
    monkeypatch.setattr(logger, "level", logging.INFO)
    return lines


class Endpoint:
    """A loopback server: `answer` gets (number of the request, its body) and returns (status,
    headers, body).
    """

    def __init__(self, answer: Callable[[int, Any], tuple[int, dict[str, str], Any]]) -> None:
        self.bodies: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.most_at_once = self._now = 0
        lock = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    endpoint._now += 1
                    endpoint.most_at_once = max(endpoint.most_at_once, endpoint._now)
                    endpoint.bodies.append(body)
                    endpoint.headers.append(dict(self.headers))
                    number = len(endpoint.bodies)
                status, headers, content = answer(number, body)
                with lock:
                    endpoint._now -= 1
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                try:
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:  # the client has given up waiting
                    pass

            # the name is upstream's
            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/score"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def serve() -> Iterator[Callable[..., Endpoint]]:
    """Start endpoints that are closed after the test."""
    started: list[Endpoint] = []

    def start(answer: Callable[[int, Any], tuple[int, dict[str, str], Any]]) -> Endpoint:
        started.append(Endpoint(answer))
        return started[-1]

    yield start
    for endpoint in started:
        endpoint.server.shutdown()
        endpoint.server.server_close()


def lengths(number: int, body: Any) -> tuple[int, dict[str, str], Any]:
    return 200, {}, {"rewards": [len(extract_text(one)) for one in body["completions"]]}


def test_an_endpoint_gives_rewards_in_order_and_gets_named_columns(
    serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = serve(lengths)
    monkeypatch.setenv("HFSTACK_REWARD_TOKEN", "secret")
    reward = RemoteReward(endpoint.url, batch_size=1, columns=("label",))
    rewards = checked_reward(reward)(
        prompts=CHATS, completions=TURNS, label=[1, 2, 3], trainer_state=object()
    )
    assert rewards == [7.0, 0.0, 5.0]
    assert sorted(body["label"][0] for body in endpoint.bodies) == [1, 2, 3]
    assert endpoint.bodies[0].keys() == {"prompts", "completions", "label"}
    assert endpoint.headers[0]["Authorization"] == "Bearer secret"
    assert checked_reward(reward).__name__ == endpoint.url.removeprefix("http://")
    with pytest.raises(DataError, match="is sent the column 'label'; the rows have: other"):
        reward(PROMPTS, ANSWERS, other=[1])


def test_requests_at_once_are_bounded(serve) -> None:
    def slowly(number: int, body: Any) -> tuple[int, dict[str, str], Any]:
        time.sleep(0.05)
        return lengths(number, body)

    endpoint = serve(slowly)
    answers = [str(index) * index for index in range(12)]
    rewards = RemoteReward(endpoint.url, batch_size=1, max_concurrency=3)(answers, answers)
    assert rewards == [len(answer) for answer in answers]
    assert 2 <= endpoint.most_at_once <= 3


def test_a_busy_endpoint_is_asked_again(serve) -> None:
    failures = {1: 500, 2: 429, 3: 503}
    endpoint = serve(
        lambda number, body: (
            failures.get(number, 200),
            {"Retry-After": "0"},
            lengths(number, body)[2],
        )
    )
    assert RemoteReward(endpoint.url, first_wait_s=0.01)(PROMPTS, ANSWERS) == [7, 0, 5]
    assert len(endpoint.bodies) == 4


def test_an_endpoint_that_stays_broken_names_samples_and_attempts(serve) -> None:
    endpoint = serve(lambda number, body: (500, {}, b"out of\nmemory"))
    reward = RemoteReward(
        endpoint.url, retries=1, first_wait_s=0.01, batch_size=2, max_concurrency=1
    )
    with pytest.raises(
        DataError,
        match=r"no rewards for samples 1 to 2 in 2 attempts; the last: status 500: out of mem",
    ):
        checked_reward(reward)(prompts=PROMPTS, completions=ANSWERS)


def test_a_slow_endpoint_times_out(serve) -> None:
    def sleepy(number: int, body: Any) -> tuple[int, dict[str, str], Any]:
        time.sleep(0.4)
        return lengths(number, body)

    endpoint = serve(sleepy)
    began = time.monotonic()
    with pytest.raises(
        DataError, match=r"samples 1 to 3 in 2 attempts; the last: timeout after 0.05 s"
    ):
        RemoteReward(endpoint.url, timeout_s=0.05, retries=1, first_wait_s=0.01)(PROMPTS, ANSWERS)
    assert time.monotonic() - began < 2


def test_an_endpoint_that_sends_byte_after_byte_times_out_as_a_whole() -> None:
    # A socket's own timeout would begin again with each byte, of the headers as of the body.
    for sent in (b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n"):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            threading.Thread(target=_drip, args=(server, sent), daemon=True).start()
            began = time.monotonic()
            with pytest.raises(DataError, match="1 attempt; the last: timeout after 0.3 s"):
                RemoteReward(f"http://127.0.0.1:{port}/", timeout_s=0.3, retries=0)(["a"], ["b"])
            assert time.monotonic() - began < 3


def _drip(server: socket.socket, begin: bytes) -> None:
    connection, _ = server.accept()
    with connection, contextlib.suppress(OSError):
        connection.sendall(begin)
        while True:
            connection.sendall(b"x")
            time.sleep(0.02)


def test_a_lost_connection_is_tried_again(serve) -> None:
    # The first answer ends in the middle, whatever its length said.
    endpoint = serve(
        lambda number, body: (
            (200, {"Content-Length": "400"}, b'{"rew') if number == 1 else lengths(number, body)
        )
    )
    assert RemoteReward(endpoint.url, first_wait_s=0.01)(PROMPTS, ANSWERS) == [7, 0, 5]
    assert len(endpoint.bodies) == 2


def test_a_second_signal_does_not_wait_for_the_endpoint(tmp_path: Path) -> None:
    """What a signal raises in the main thread ends the process, whatever is under way."""
    code = (
        "import signal, socket, time\n"
        "from hfstack.tasks.rewards.remote import RemoteReward\n"
        "server = socket.create_server(('127.0.0.1', 0))\n"
        "signal.signal(signal.SIGALRM, lambda *unused: exit(75))\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.3)\n"
        "url = f'http://127.0.0.1:{server.getsockname()[1]}/'\n"
        "RemoteReward(url, timeout_s=60)(['a'] * 99, ['b'] * 99)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=30).returncode == 75


def test_nobody_listening() -> None:
    with pytest.raises(DataError, match=r"in 1 attempt; the last: .*refused"):
        RemoteReward("http://127.0.0.1:9/score", retries=0)(PROMPTS, ANSWERS)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((200, {}, {"rewards": [1.0]}), "returned 1 values for samples 1 to 3, which are 3"),
        ((200, {}, {"scores": [1, 2, 3]}), 'lacks a list under "rewards"'),
        ((200, {}, b"<html>"), "is not JSON: '<html>'"),
        ((200, {}, b'{"rewards": [1, NaN, 2]}'), "returned NaN for sample 2, not a finite"),
        ((200, {}, b'{"rewards": [1, 2, true]}'), "returned true for sample 3, not a finite"),
        ((200, {}, b'{"rewards": ["1.0", 2, 3]}'), 'returned "1.0" for sample 1, not a finite'),
        ((200, {}, b'{"rewards": [1, 1e999, 3]}'), "returned Infinity for sample 2, not"),
        ((200, {}, b'{"rewards": [1%b, 2, 3]}' % (b"0" * 400)), "returned 1000.* for sample 1"),
        ((200, {}, b'{"rewards": [1], "rewards": [1, 2, 3]}'), "the key 'rewards' occurs twice"),
        ((200, {}, b"[" * 200_000), "is not JSON"),
        ((200, {}, b" " * (1 << 21)), "is over 1060864 bytes"),
        ((404, {}, b"no such path"), "refused samples 1 to 3 with status 404: no such path"),
        ((302, {"Location": "http://127.0.0.1:9/"}, b""), "refused samples 1 to 3 with status 302"),
    ],
)
def test_answers_that_are_no_rewards_are_refused_at_once(serve, answer: Any, message: str) -> None:
    endpoint = serve(lambda number, body: answer)
    with pytest.raises(DataError, match=message):
        checked_reward(RemoteReward(endpoint.url))(prompts=PROMPTS, completions=ANSWERS)
    assert len(endpoint.bodies) == 1


@pytest.mark.parametrize(
    "url",
    [
        *("file:///etc/passwd", "ftp://host/x", "http://", "data:,1", "runs/reward"),
        *("http://host:99999/", "http://[::1/", "http://host/a b", "http://host/\u00fc"),
    ],
)
def test_only_http_is_called(url: str) -> None:
    with pytest.raises(ConfigError, match="only http:// and https://"):
        RemoteReward(url)


def test_settings_of_an_endpoint_are_checked() -> None:
    with pytest.raises(ConfigError, match="HFSTACK_REWARD_TOKEN"):
        RemoteReward("https://me:secret@host/score")
    with pytest.raises(ConfigError, match="timeout_s must be above 0"):
        RemoteReward("https://host/score", timeout_s=0)
    with pytest.raises(ConfigError, match="retries must be 0 or more"):
        RemoteReward("https://host/score", retries=-1)
