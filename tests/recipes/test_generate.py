"""Generation through the recipe."""

import json
from pathlib import Path

import pytest
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
)

from hfstack.errors import CheckpointError, ConfigError, DataError
from hfstack.recipe_settings import load_recipe
from hfstack.runs.record import read_run
from hfstack.shipped import RECIPES
from hfstack.tasks.causal_lm.generate import generate_from_ids, sample_pairs
from tests.tiny_chat import save_tiny_chat


def test_completions_are_printed_and_saved(
    run_recipe, tiny_llama: Path, tmp_path: Path, capsys
) -> None:
    metrics = run_recipe(
        "generate",
        "--model_name_or_path",
        tiny_llama,
        "--prompts",
        "The owl",
        "狐狸",
        "--num_samples",
        2,
        "--max_new_tokens",
        6,
        "--output_dir",
        tmp_path / "out",
    )
    record = read_run(tmp_path / "out")
    rows = [
        json.loads(line)
        for line in (tmp_path / "out" / record.artifacts["completions"]).read_text().splitlines()
    ]
    assert [row["prompt"] for row in rows] == ["The owl", "The owl", "狐狸", "狐狸"]
    assert metrics["completions"] == 4 and 0 < metrics["mean_tokens"] <= 6
    assert "The owl" + rows[0]["completion"] in capsys.readouterr().out


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.jsonl"])
def test_prompts_from_a_file(run_recipe, tiny_llama: Path, tmp_path: Path, name: str) -> None:
    lines = ["The owl", "A fox"]
    text = "".join(
        f"{line}\n" if name.endswith("txt") else json.dumps({"prompt": line}) + "\n"
        for line in lines
    )
    (tmp_path / name).write_text(text)
    metrics = run_recipe(
        "generate",
        "--model_name_or_path",
        tiny_llama,
        "--prompts_file",
        tmp_path / name,
        "--max_new_tokens",
        2,
        "--output_dir",
        tmp_path / "out",
    )
    assert metrics["completions"] == 2


def test_same_seed_same_text_in_a_new_folder_each_time(
    run_recipe, tiny_llama: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    call = [
        "generate",
        "--model_name_or_path",
        tiny_llama,
        "--prompts",
        "The",
        "--max_new_tokens",
        8,
    ]
    run_recipe(*call)
    first = capsys.readouterr().out
    run_recipe(*call, "--output_dir", "again")
    assert capsys.readouterr().out == first
    assert len(list(Path("runs").iterdir())) == 1


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "the",
        "capital",
        "of",
        "france",
        "is",
        "paris",
        ".",
    ]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    BertForMaskedLM(
        BertConfig(
            vocab_size=12,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
        )
    ).save_pretrained(folder)
    return folder


def test_masks_are_filled_by_a_masked_model(run_recipe, bert: Path, tmp_path: Path, capsys) -> None:
    prompt = "The capital of France is [MASK]."
    metrics = run_recipe(
        "generate",
        "--model_name_or_path",
        bert,
        "--prompts",
        prompt,
        "the [MASK] of [MASK]",
        "--output_dir",
        tmp_path / "o",
    )
    assert metrics == {"masks": 3}
    rows = [
        json.loads(line) for line in (tmp_path / "o" / "fillings.jsonl").read_text().splitlines()
    ]
    assert [row["position"] for row in rows] == [6, 2, 4]  # [CLS] comes before the text
    assert f"{prompt}  mask 1 at token 6: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        ([], ConfigError, "no prompts: use --prompts"),
        (["--prompts_file", "nowhere.txt"], DataError, "nowhere.txt"),
        (["--prompts", "a", "--temperature", -1], ConfigError, "--temperature must be 0"),
        (
            ["--prompts", "a", "--model_name_or_path", "/nowhere"],
            CheckpointError,
            "no tokenizer at /nowhere",
        ),
    ],
)
def test_mistakes(run_recipe, tiny_llama: Path, tmp_path: Path, flags, error, message: str) -> None:
    with pytest.raises(error, match=message):
        run_recipe(
            "generate", "--model_name_or_path", tiny_llama, "--output_dir", tmp_path / "out", *flags
        )


def test_what_was_sampled_with_is_recorded_and_the_models_own_is_not(
    run_recipe, tiny_llama: Path, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    model.generation_config.update(do_sample=True, top_k=1, repetition_penalty=5.0)
    for source in (model, AutoTokenizer.from_pretrained(tiny_llama)):
        source.save_pretrained(tmp_path / "own")
    given = ("--prompts", "The owl", "--num_samples", 60, "--max_new_tokens", 1)
    run_recipe(
        "generate", "--model_name_or_path", tmp_path / "own", *given, "--output_dir", tmp_path / "a"
    )
    rows = (tmp_path / "a" / "completions.jsonl").read_text().splitlines()
    assert len({json.loads(row)["completion"] for row in rows}) > 30
    used = read_run(tmp_path / "a").settings["GenerateArgs"]
    expected = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "max_new_tokens": 1}
    assert {name: used[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("flags", "asked"),
    [
        ([], "<|user|>The fox<|end|><|assistant|>"),
        (["--as_chat", "false"], "<|endoftext|>The fox"),
    ],
)
def test_the_chat_template_is_used_where_there_is_one(
    run_recipe, tiny_llama: Path, tmp_path: Path, capsys, flags: list[str], asked: str
) -> None:
    """The greedy answers are those to the rendered prompt, and a conversation is a prompt too."""
    folder = save_tiny_chat(tiny_llama, tmp_path / "chat")
    tokenizer, model = (
        kind.from_pretrained(folder) for kind in (AutoTokenizer, AutoModelForCausalLM)
    )
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    ends = [tokenizer.eos_token_id, end] if not flags else [tokenizer.eos_token_id]
    model.generation_config.eos_token_id = ends
    expected = generate_from_ids(
        model.eval(), tokenizer, [tokenizer(asked)["input_ids"]], max_new_tokens=9
    )[0].completion

    prompt = "The fox" if flags else [{"role": "user", "content": "The fox"}]
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": prompt}) + "\n")
    options = {
        "model_name_or_path": folder,
        "prompts_file": tmp_path / "prompts.jsonl",
        "temperature": 0,
        "max_new_tokens": 9,
        "output_dir": tmp_path / "out",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    run_recipe("generate", "--prompts", "The fox", *words, *flags)
    lines = (tmp_path / "out" / "completions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["completion"] for row in rows] == [expected] * 2
    assert [row["prompt"] for row in rows] == ["The fox"] * 2
    assert f"The fox{'' if flags else chr(10)}{expected}" in capsys.readouterr().out


def test_an_answer_beyond_the_context_is_refused(
    run_recipe, tmp_path: Path, tiny_tokenizer
) -> None:
    """GPT-2 has a table of positions, and would fail in the middle of generating."""
    end = tiny_tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=300, n_positions=32, n_embd=8, n_layer=1, n_head=1, eos_token_id=end
    )
    config.bos_token_id = end
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tiny_tokenizer.save_pretrained(tmp_path / "gpt2")
    long = "The owl was kind"
    room = 32 - 1 - len(tiny_tokenizer(long)["input_ids"])  # a start token goes before it

    def generate(tokens: int, folder: str, *more: str) -> dict[str, float]:
        prompts = ("--prompts", "a", long, *more)
        flags = ("--max_new_tokens", tokens, "--output_dir", tmp_path / folder)
        return run_recipe("generate", "--model_name_or_path", tmp_path / "gpt2", *prompts, *flags)

    with pytest.raises(ConfigError, match=f"prompt 2 has .* of 32 tokens: lower it to {room} or"):
        generate(room + 1, "a")
    with pytest.raises(ConfigError, match="prompt 3 has .* of 32 tokens: shorten the prompt$"):
        generate(1, "b", "z" * 40)
    assert generate(room, "c")["completions"] == 2

    model = GPT2LMHeadModel.from_pretrained(tmp_path / "gpt2")
    settings = {"tokenizer": tiny_tokenizer, "max_new_tokens": 99, "temperature": 0.8}
    pairs = sample_pairs(model, prompts=[long, "a"], **settings)
    assert len(pairs) == 2, "samples of a training are shorter instead"


def test_each_line_of_a_text_file_is_a_prompt(tmp_path: Path) -> None:
    read_prompts = load_recipe(RECIPES / "generate.py").read_prompts
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"The owl\r\n\nA fox \nOnce\n\n\nupon a time")
    assert read_prompts(str(path)) == ["The owl", "A fox ", "Once", "upon a time"]

    path.write_bytes("caf\xe9\n".encode("latin-1"))
    with pytest.raises(DataError, match="is not UTF-8"):
        read_prompts(str(path))
