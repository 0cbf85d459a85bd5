"""How rows were rendered is recorded, and what follows in the chain is held to it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForSequenceClassification
from trl import ModelConfig

from hfstack.data.sources import DataArgs, Source
from hfstack.errors import CheckpointError, ConfigError
from hfstack.runs.record import read_run
from hfstack.runs.rendering import (
    check_rendering,
    describe_rendering,
    follow_rendering,
    read_rendering,
)
from hfstack.runs.run import Run
from hfstack.tasks.causal_lm.prompt_format import find_prompt_format
from hfstack.tasks.preferences.encode import encode_answer
from hfstack.tasks.rewards.reward_model import RewardModel
from hfstack.tasks.rl.online import OnlineArgs, load_recorded_prompts, load_recorded_tokenizer
from tests.one_training_step import OLD_CHECKPOINTING

pytestmark = OLD_CHECKPOINTING

TEMPLATE = (
    "{% for turn in messages %}[{{ turn['role'] }}] {{ turn['content'] }}{{ eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
TURN, ANSWER = [{"role": "user", "content": "hi"}], [{"role": "assistant", "content": "ho"}]


@pytest.fixture
def trained(tmp_path: Path, tiny_llama: Path) -> Callable[..., Path]:
    """Write the folder of a run on rows of a form, with its model: a policy, or a reward model."""

    def write(form: Any, *, recipe: str = "sft", name: str | None = None) -> Path:
        folder = tmp_path / (name or f"{recipe}-{form}")
        tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
        tokenizer.chat_template = TEMPLATE
        with Run.start(f"{recipe}.py", folder) as run:
            run.record.rendering = describe_rendering(tokenizer, form)
        tokenizer.save_pretrained(folder)
        torch.manual_seed(0)
        kinds: dict[str, Any] = {"reward": LlamaForSequenceClassification}
        settings = {"num_labels": 1} if recipe == "reward" else {}
        loaded = kinds.get(recipe, AutoModelForCausalLM).from_pretrained(tiny_llama, **settings)
        loaded.save_pretrained(folder)
        return folder

    return write


def test_a_record_is_read_from_the_run_its_checkpoints_and_what_was_merged(
    trained, tmp_path: Path, tiny_llama: Path
) -> None:
    folder = trained("chat")
    known, place = read_rendering(str(folder)) or pytest.fail("nothing was recorded")
    assert known.chat and place == str(folder / "run.json")
    (folder / "checkpoint-4").mkdir()
    assert read_rendering(str(folder / "checkpoint-4"))
    with Run.start("merge_checkpoint.py", tmp_path / "merged") as run:
        run.record_inputs(folder)
    merged, _ = read_rendering(str(tmp_path / "merged")) or pytest.fail("parents are not asked")
    assert merged == known

    for unknown in (None, "user/model", str(tiny_llama), str(trained("text"))):
        assert read_rendering(unknown) is None
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_text('{"of": "another tool"}')
    assert read_rendering(str(tmp_path / "other")) is None


@pytest.mark.parametrize("place", ["folder", "Hub"])
def test_what_is_published_is_read_as_a_run_is(
    trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    folder = trained("chat")
    published = {"rendering": {"recipe": "sft", **read_run(folder).rendering}}
    (folder / "run.json").unlink()
    (folder / "publication.json").write_text(json.dumps(published))
    name = str(folder)
    if place == "Hub":  # what was downloaded before
        name, cache = "somebody/talker", tmp_path / "cache" / "models--somebody--talker"
        shutil.copytree(folder, cache / "snapshots" / "abc")
        (cache / "refs").mkdir()
        (cache / "refs" / "main").write_text("abc")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))

    rendering, said_by = read_rendering(name) or pytest.fail("nothing was read")
    assert rendering.chat and said_by == f"{name}/publication.json"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert find_prompt_format(name, tokenizer).reason.startswith("sft trained it so")
    assert follow_rendering(name, None, flag="conversational", usual=False)
    with pytest.raises(ConfigError, match="the rows are plain text, but .* on conversations"):
        check_rendering(name, tokenizer, chat=False)

    tokenizer.chat_template = TEMPLATE.replace("[assistant]", "[bot]")
    with pytest.raises(CheckpointError, match="another chat template than this one"):
        check_rendering(name, tokenizer, chat=True)


def test_a_published_model_that_was_pretrained_is_not_asked_by_its_template(trained) -> None:
    folder = trained("text")
    (folder / "run.json").unlink()
    published = {"rendering": {"recipe": "pretrain_clm", "form": "text"}}
    (folder / "publication.json").write_text(json.dumps(published))
    found = find_prompt_format(str(folder), AutoTokenizer.from_pretrained(folder))
    assert found.kind == "document"
    assert read_rendering(str(folder)) is None


def test_an_option_that_was_left_out_follows_and_one_that_was_set_must_agree(
    trained, tiny_llama: Path
) -> None:
    chat, plain = str(trained("chat")), str(trained("plain"))
    option: Any = {"flag": "as_chat", "usual": True}
    assert follow_rendering(chat, None, **option) and follow_rendering(chat, True, **option)
    assert not follow_rendering(plain, None, **option)
    for asked in (True, False):
        assert follow_rendering(str(tiny_llama), asked, **option) == asked
    with pytest.raises(
        ConfigError,
        match=r"--as_chat true, but .*plain was trained on plain text \(.*/run\.json\): leave",
    ):
        follow_rendering(plain, True, **option)
    assert follow_rendering(plain, None, flag="reward_as_text", usual=False, true_means="plain")


def test_other_rows_templates_and_tokenizers_are_refused(trained) -> None:
    folder = trained("chat")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    check_rendering(str(folder), tokenizer, chat=True)
    with pytest.raises(ConfigError, match="the rows are plain text, but .* trained on conversatio"):
        check_rendering(str(folder), tokenizer, chat=False)
    tokenizer.chat_template += " "
    with pytest.raises(CheckpointError, match="was trained with another chat template"):
        check_rendering(str(folder), tokenizer, chat=True)
    tokenizer.chat_template = TEMPLATE
    tokenizer.add_tokens(["<new>"])
    with pytest.raises(CheckpointError, match="was trained with another tokenizer"):
        check_rendering(str(folder), tokenizer, chat=True)


def test_a_reward_model_reads_what_it_was_trained_on(
    trained, caplog: pytest.LogCaptureFixture
) -> None:
    plain, chat = (str(trained(form, recipe="reward")) for form in ("plain", "chat"))
    of_text, of_turns = RewardModel(plain), RewardModel(chat)
    text = encode_answer(of_text.tokenizer, "hi", "ho")[0]
    turns = encode_answer(of_text.tokenizer, TURN, ANSWER)[0]
    assert text != turns
    assert of_text.encode("hi", "ho") == of_text.encode(TURN, ANSWER) == text
    assert of_turns.encode("hi", "ho") == of_turns.encode(TURN, ANSWER) == turns
    said = [line for line in caplog.messages if "was trained on plain text" in line]
    assert len(said) == 1 and "without a chat template" in said[0]
    with pytest.raises(ConfigError, match="trained on plain text, and a prompt has 3 turns"):
        of_text.encode([*TURN, *ANSWER, *TURN], ANSWER)

    assert RewardModel(plain, as_text=True).encode([*TURN, *ANSWER, *TURN], ANSWER)
    for folder, wrong in ((plain, False), (chat, True)):
        with pytest.raises(ConfigError, match="--reward_as_text .* but .* was trained on"):
            RewardModel(folder, as_text=wrong)


@pytest.fixture
def train(run_recipe, tmp_path: Path):
    """Call a recipe that trains for one step on rows; keyword arguments are options."""

    def call(recipe: str, model: Path, rows: list[dict[str, Any]], **changes: object) -> Path:
        data = tmp_path / f"{recipe}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        out = tmp_path / f"{recipe}-out-{len(list(tmp_path.iterdir()))}"
        settings = {
            "model_name_or_path": model,
            "datasets": data,
            "eval_fraction": 0,
            "output_dir": out,
            "max_steps": 1,
            "report_to": "none",
            "bf16": "false",
            "gradient_checkpointing": "false",
            "dataloader_pin_memory": "false",
            "save_strategy": "no",
        } | changes
        run_recipe(recipe, *(f"--{key}={value}" for key, value in settings.items()))
        return out

    return call


def rendered(folder: Path) -> str:
    return read_run(folder).rendering["form"]


def test_the_whole_chain_keeps_the_form_of_sft(train, trained, tiny_llama: Path) -> None:
    texts = [f"Fox {number}:" for number in range(8)]
    pairs = [{"prompt": text, "chosen": " was kind", "rejected": " ran"} for text in texts]
    answers = [{"prompt": text, "completion": " was kind"} for text in texts]
    short = {"max_length": 64, "sample_tokens": 4}
    plain, chat = trained("plain", name="start-plain"), trained("chat", name="start-chat")

    # what sft records, dpo and reward follow, though their rows are the same plain pairs
    options = {"assistant_only_loss": "false", "answer_tokens": 4, "max_length": 64}
    tuned = train("sft", chat, answers, **options)
    aligned, judge = train("dpo", tuned, pairs, **short), train("reward", tuned, pairs)
    assert [rendered(folder) for folder in (tuned, aligned, judge)] == ["chat"] * 3
    with pytest.raises(ConfigError, match="--conversational false, but .* trained on conv"):
        train("dpo", chat, pairs, **short, conversational="false")
    turns = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in pairs]
    with pytest.raises(ConfigError, match="the rows are conversations, but .* on plain text"):
        train("dpo", plain, turns, **short)
    with pytest.raises(ConfigError, match="the rows are conversations, but .* on plain text"):
        train("reward", plain, turns)


def test_prompts_of_online_training_follow_the_policy(trained, tmp_path: Path) -> None:
    def prompts(start: Path, rows: list[Any], **options: Any) -> tuple[Any, str]:
        file = tmp_path / "prompts.jsonl"
        file.write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows))
        args = ModelConfig(model_name_or_path=str(start))
        with Run.start("rloo.py", tmp_path / f"out-{len(list(tmp_path.iterdir()))}") as run:
            data = DataArgs(datasets=[Source(str(file))], eval_fraction=0)
            splits = load_recorded_prompts(run, args, data, OnlineArgs(**options))
            load_recorded_tokenizer(run, splits, args)
        return splits["train"][0]["prompt"], run.record.rendering["form"]

    chat, plain = trained("chat"), trained("plain")
    assert prompts(chat, ["hi", "ho"]) == (TURN, "chat")
    assert prompts(plain, ["hi", "ho"]) == ("hi", "plain")
    with pytest.raises(ConfigError, match="--as_chat true, but .*-plain was trained on plain text"):
        prompts(plain, ["hi", "ho"], as_chat=True)
    with pytest.raises(ConfigError, match="the rows are conversations, but .*-plain was trained"):
        prompts(plain, [TURN, TURN])


def test_models_of_two_forms_are_each_asked_in_their_own(
    run_recipe, trained, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Fox {i}"}) + "\n" for i in range(4)))
    flags: dict[str, Any] = {
        "model_name_or_path": trained("plain"),
        "reference_model": trained("chat"),
        "reward_model": trained("plain", recipe="reward"),
        "datasets": prompts,
        "eval_fraction": 0,
        "max_new_tokens": 4,
        "output_dir": tmp_path / "out",
    }
    metrics = run_recipe("win_rate", *(f"--{key}={value}" for key, value in flags.items()))
    lines = (tmp_path / "out" / "answers.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert metrics["prompts"] == 4 and {row["prompt"] for row in rows} == {
        f"Fox {number}" for number in range(4)
    }
    flags |= {"output_dir": tmp_path / "refused", "as_chat": "true"}
    with pytest.raises(ConfigError, match="--as_chat true, but .*sft-plain was trained on plain"):
        run_recipe("win_rate", *(f"--{key}={value}" for key, value in flags.items()))


def test_generate_asks_a_model_of_turns_in_turns(run_recipe, trained, tmp_path: Path) -> None:
    def tokens_of(folder: Path, **options: str) -> str:
        out = tmp_path / f"generated-{len(list(tmp_path.iterdir()))}"
        flags = {"model_name_or_path": folder, "prompts": "the fox", "output_dir": out}
        flags |= {"temperature": 0, "max_new_tokens": 8, **options}
        run_recipe("generate", *(f"--{key}={value}" for key, value in flags.items()))
        row = json.loads((out / "completions.jsonl").read_text())
        assert row["prompt"] == "the fox"
        return row["completion"]

    chat, plain = trained("chat"), trained("plain")
    # the same weights: what differs is what they were asked
    assert tokens_of(chat) != tokens_of(plain)
    # what is asked for counts: a prompt may be tried as plain text
    assert tokens_of(chat, as_chat="false") != tokens_of(chat)


def test_predict_scores_no_single_text_with_a_reward_model(
    run_recipe, trained, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "the fox"}\n')
    flags = ["--datasets", tmp_path / "rows.jsonl", "--output_dir", tmp_path / "out"]
    with pytest.raises(CheckpointError, match=r"of prompts with answers \(.*run.json\), which pre"):
        run_recipe("predict", "--model_name_or_path", trained("plain", recipe="reward"), *flags)
