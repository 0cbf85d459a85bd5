"""The commands and the settings that a report and a card show."""

import shlex

from hfstack.reporting.provenance import first_settings, wrapped_command


def test_commands_wrap_by_option_and_mean_the_same() -> None:
    command = shlex.join(
        [
            "recipes/generate.py",
            "--prompts",
            "Once upon a time",
            "it's",
            "--max_new_tokens",
            "9" * 60,
        ]
    )
    wrapped = wrapped_command(command)
    assert wrapped.count("\\\n") == 2
    assert shlex.split(wrapped.replace("\\\n", "")) == shlex.split(command)
    assert wrapped_command("short --a 1") == "short --a 1"


def test_first_settings_keep_zero_and_drop_what_is_unset() -> None:
    settings = {
        "A": {"seed": 0, "bf16": False, "max_steps": -1},
        "B": {"top_p": None, "learning_rate": 0.1, "other": 1},
    }
    assert first_settings(settings) == {"learning_rate": 0.1, "seed": 0}
