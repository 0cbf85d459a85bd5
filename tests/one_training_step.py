"""Settings of one quick training step with TRL, and the warnings that TRL itself raises in it."""

import pytest

# TRL 1.16 and peft 0.21 use the old names of activation checkpointing, and transformers 5.23 warns
# of them.
OLD_CHECKPOINTING = [
    pytest.mark.filterwarnings(f"ignore:`{name}` is deprecated:FutureWarning")
    for name in (
        "is_gradient_checkpointing",
        "gradient_checkpointing_enable",
        "gradient_checkpointing_disable",
    )
]

ONE_STEP = {
    "max_steps": 1,
    "report_to": "none",
    "bf16": "false",
    "activation_checkpointing": "false",
    "gradient_checkpointing": "false",
    "max_length": 64,
    "dataloader_pin_memory": "false",
    "save_strategy": "no",
    "sample_tokens": 1,
}
