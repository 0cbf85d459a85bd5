"""Every wrong input ends in one line that says what, where and what to do; every right one arrives
as it was meant.
"""

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from transformers import TrainingArguments
from trl import ModelConfig, SFTConfig

from hfstack.config import bf16_hardware, parse
from hfstack.errors import ConfigError, refusals_of_upstream
from hfstack.tasks.causal_lm.decoding.decode import pad_left


@dataclass
class Item:
    """One entry of a list, as `Source` is."""

    path: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise ConfigError(f"weight of {self.path} must be above 0, got {self.weight}")


@dataclass
class Args:
    """A recipe's own settings."""

    items: list[Item] = field(default_factory=list)
    """Things to read, 100% of them."""
    words: list[str] = field(default_factory=list)
    size: int = 3
    """A number of things."""
    mode: Literal["fast", "slow"] = "fast"
    note: str | None = None
    table: dict | None = None
    strict: bool = True


def read(*argv: str, yaml: str | None = None, tmp_path: Path | None = None) -> Args:
    if yaml is not None:
        assert tmp_path
        (tmp_path / "c.yaml").write_text(yaml)
        argv = ("--config", str(tmp_path / "c.yaml"), *argv)
    return parse(Args, argv=list(argv))[0]


def test_values_arrive_as_they_were_meant(tmp_path: Path) -> None:
    args = read(
        "--size",
        "7",
        "--no_strict",
        yaml="size: 5\nmode: slow\nwords: [a, 1, no]\nnote: off\ntable: {a: 1}\n"
        "items: [x.jsonl, {path: y, weight: 2}]\n",
        tmp_path=tmp_path,
    )
    assert (args.size, args.mode, args.strict) == (7, "slow", False)
    assert args.table == {"a": 1}
    assert args.words == ["a", "1", "no"]
    assert args.note == "off"  # the word that was written, not YAML 1.1's false
    assert args.items == [Item("x.jsonl"), Item("y", 2.0)]


def test_items_come_from_plain_words_on_the_command_line() -> None:
    assert read("--items", "a", "b").items == [Item("a"), Item("b")]


def test_null_and_empty_list(tmp_path: Path) -> None:
    args = read(yaml="note: null\nitems: []\nwords: []\n", tmp_path=tmp_path)
    assert (args.note, args.items, args.words) == (None, [], [])


def test_config_with_equals_sign_is_read(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("size: 9\n")
    assert read(f"--config={tmp_path / 'c.yaml'}").size == 9


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--sizes", "3"], "unknown option '--sizes'; did you mean '--size'?"),
        (["--siz", "3"], "did you mean '--size'?"),  # no abbreviations
        (["stray"], "unexpected value 'stray'"),
        (["--mode", "quick"], "--mode: invalid choice: 'quick' (choose from"),
        (["--size", "five"], "--size: invalid int value: 'five'"),
        (["--size"], "--size: expected one argument"),
        (["--table", "{"], "--table: expected a JSON mapping, got '{'"),
        (["--config", "nowhere.yaml"], "--config nowhere.yaml: no such file"),
        (["--config", "a", "--config", "b"], "--config may be given once, got a, b"),
    ],
)
def test_wrong_flags(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(*argv)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("size: 1\nsizes: 3\n", "c.yaml:2: unknown key 'sizes'; did you mean 'size'?"),
        ("mode: quick\n", "c.yaml:1: --mode: invalid choice: 'quick'"),
        ("\n\nsize: five\n", "c.yaml:3: --size: invalid int value: 'five'"),
        ("size: 1.5\n", "c.yaml:1: --size: invalid int value: '1.5'"),
        ("size: true\n", "c.yaml:1: --size: invalid int value: 'true'"),
        ("size: null\n", "c.yaml:1: size takes int, got null"),
        ("size: [1, 2]\n", "c.yaml:1: size takes int, got a list: [1, 2]"),
        ("size: {a: 1}\n", "c.yaml:1: size takes int, got a mapping"),
        ("size: 1\nsize: 2\n", "c.yaml:2: size is already set in line 1"),
        (
            "items:\n  - {path: a, weigth: 2}\n",
            "c.yaml:1: items has unknown key 'weigth'; did you mean 'weight'?",
        ),
        ("items: [{weight: 2}]\n", "lacks 'path'"),
        ("items: [{path: a, weight: much}]\n", "c.yaml:1: items: weight takes float, got 'much'"),
        ("items: [{path: a, weight: -1}]\n", "c.yaml:1: weight of a must be above 0, got -1"),
        (
            "items: [3]\n",
            "c.yaml:1: each item of items is a string or a mapping of path, weight, got 3",
        ),
        ("- size\n", "c.yaml:1: expected a mapping of option to value"),
        ("size: 'open\n", "c.yaml:2:1: not YAML of settings"),
        (
            "words: &a [b, c]\nitems: *a\n",
            r"c.yaml:2:8: not YAML of settings: the alias *a of a list or mapping is not read",
        ),
        (
            "table: &a {b: *a}\n",
            r"c.yaml:1:15: not YAML of settings: the alias *a of a list or mapping is not read",
        ),
        (
            "table: !!set {a, b}\n",
            "c.yaml:1:8: not YAML of settings: the tag tag:yaml.org,2002:set is not read",
        ),
        (
            "note: !!python/name:os.system\n",
            "c.yaml:1:7: not YAML of settings: the tag tag:yaml.org,2002:python",
        ),
        ("note: !odd x\n", "c.yaml:1:7: not YAML of settings: the tag !odd is not read"),
        ("table: {a: 1, a: 2}\n", "c.yaml:1:15: not YAML of settings: the key 'a' occurs twice"),
        ("? [a, b]\n: 1\n", "c.yaml:1:3: not YAML of settings: a key is a name, not a list"),
        (
            f"table: {'[' * 17}{']' * 17}\n",
            "c.yaml:1:23: not YAML of settings: more than 16 levels",
        ),
        (
            f"note: {'x' * 300_000}\n",
            "c.yaml: not YAML of settings: more than 262144 characters of",
        ),
        ('note: "a\\0b"\n', "c.yaml:1:7: not YAML of settings: a text with the character NUL"),
        ('note: "\\ud800"\n', "c.yaml:1:7: not YAML of settings: half of a surrogate pair"),
        ("table: {a: 2026-01-01}\n", "c.yaml:1: table is read as a date, 2026-01-01: put it in"),
        (f"words: [0x{'f' * 9999}]\n", "c.yaml:1: words is an integer of more than 64 bits"),
        ("words: [a, null]\n", "c.yaml:1: each item of words is one word or number, got None"),
        (
            "words: [a, --size=3]\n",
            "c.yaml:1: each item of words is one word or number, got '--size",
        ),
    ],
)
def test_wrong_yaml_names_file_and_line(yaml: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(yaml=yaml, tmp_path=tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_flag_does_not_hide_a_mistake_in_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"c\.yaml:1: --size: invalid int value"):
        read("--size", "4", yaml="size: five\n", tmp_path=tmp_path)


def test_a_list_item_speaks_for_itself_on_the_command_line() -> None:
    @dataclass
    class Nested:
        entries: list[Item] = field(default_factory=list)

    class Fussy(Item):
        pass

    with pytest.raises(ConfigError, match="weight of x must be above 0"):
        Item("x", 0)
    assert parse(Nested, argv=["--entries", "x"])[0].entries == [Item("x")]
    assert Fussy("x").weight == 1


def test_upstream_refusals_become_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"TrainingArguments: .*strategy") as caught:
        parse(
            TrainingArguments,
            argv=[
                "--eval_strategy",
                "epoch",
                "--load_best_model_at_end",
                "true",
                "--output_dir",
                str(tmp_path),
            ],
        )
    assert "\n" not in str(caught.value)


def test_words_that_yaml_reads_as_false_stay_words(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        f"eval_strategy: no\noutput_dir: {tmp_path}\nlearning_rate: 1e-3\n"
    )
    args = parse(ModelConfig, TrainingArguments, argv=["--config", str(tmp_path / "c.yaml")])[1]
    assert args.eval_strategy == "no"
    assert args.learning_rate == 1e-3


def test_hardware_decides_what_is_not_given(tmp_path: Path) -> None:
    args = parse(SFTConfig, argv=["--output_dir", str(tmp_path)])[0]
    assert args.bf16 == (bf16_hardware() is not None)
    assert (
        parse(SFTConfig, argv=["--output_dir", str(tmp_path), "--bf16", "false"])[0].bf16 is False
    )


def test_several_trackers_are_named_as_a_list(tmp_path: Path) -> None:
    base = ["--output_dir", str(tmp_path), "--use_cpu", "true", "--bf16", "false"]
    (tmp_path / "run.yaml").write_text("report_to: [tensorboard, wandb]\n")
    for flags in (
        ["--report_to", "tensorboard", "wandb"],
        ["--config", str(tmp_path / "run.yaml")],
    ):
        (args,) = parse(TrainingArguments, argv=[*base, *flags])
        assert args.report_to == ["tensorboard", "wandb"]
    assert parse(TrainingArguments, argv=[*base, "--report_to", "wandb"])[0].report_to == ["wandb"]
    for flags in ([], ["--report_to", "none"]):
        assert parse(TrainingArguments, argv=[*base, *flags])[0].report_to == []


def test_the_old_name_of_a_setting_is_its_new_name(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    (tmp_path / "on.yaml").write_text("activation_checkpointing: true\n")
    config = ["--output_dir", str(tmp_path), "--config", str(tmp_path / "on.yaml")]
    for argv, expected in [
        (config[:2], True),  # trl's own default, under the old name
        ([*config, "--gradient_checkpointing", "false"], False),
        (
            [*config, "--gradient_checkpointing", "false", "--activation_checkpointing", "true"],
            True,
        ),
    ]:
        args = parse(SFTConfig, argv=argv)[0]
        assert args.activation_checkpointing is args.gradient_checkpointing is expected, argv
    assert not [warning for warning in recwarn if "checkpointing" in str(warning.message)]


def test_tokens_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="hub_token is refused") as caught:
        parse(
            TrainingArguments,
            argv=["--output_dir", str(tmp_path), "--hub_token", "hf_secretsecretsecret"],
        )
    assert "secret" not in str(caught.value)


def test_exit_codes_and_one_line_on_stderr(tmp_path: Path) -> None:
    recipe = tmp_path / "r.py"
    recipe.write_text(
        "import sys\nfrom dataclasses import dataclass\nfrom hfstack.config import command_line\n"
        "from hfstack.errors import AlreadyFinished, DataError, Preempted\n"
        "@dataclass\nclass A:\n    how: str = 'ok'\n"
        "def main(a: A) -> dict[str, float]:\n"
        "    kinds = {'bad': DataError('rows.jsonl:3: no text\\n  here'), 'stop': "
        "Preempted('stopped'),\n"
        "             'done': AlreadyFinished('done')}\n"
        "    if a.how in kinds: raise kinds[a.how]\n    return {}\n"
        "for how in ('ok', 'done', 'bad', 'stop'):\n"
        "    sys.argv = ['r.py', '--how', how]\n    code = 0\n"
        "    try: command_line(main)\n    except SystemExit as end: code = end.code\n    "
        "print(how, code)\n"
    )
    done = subprocess.run([sys.executable, str(recipe)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["ok 0", "done 0", "bad 1", "stop 75"]
    assert done.stderr.splitlines() == [
        "r.py: done",
        "r.py: rows.jsonl:3: no text here",
        "r.py: stopped",
    ]


def test_upstreams_refusals_are_one_line_and_our_bugs_keep_their_traceback():
    refused = pytest.raises(ConfigError, match=r"^refused by the Trainer: sometimes is not a valid")
    with refused, refusals_of_upstream():
        TrainingArguments(output_dir="x", report_to="none", eval_strategy="sometimes")
    with pytest.raises(ConfigError, match="^as it was$"), refusals_of_upstream():
        raise ConfigError("as it was")
    with pytest.raises(ValueError, match="empty"), refusals_of_upstream():
        pad_left([], 0)
