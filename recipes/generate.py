"""Generate text: completions of prompts, or fillings of [MASK].

    accelerate launch recipes/generate.py --config recipes/generate.yaml --prompts "The fox"
    hfstack run generate --prompts "Once upon a time" "The fox"         # the same, shorter

reads   a model and its tokenizer; prompts from the command line or a file, one a line (or jsonl
        with `prompt`: text, or a conversation)
writes  completions.jsonl (or fillings.jsonl) and run.json in --output_dir
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from trl import ModelConfig

from hfstack.config import command_line
from hfstack.data.reading.files import data_file
from hfstack.data.reading.opening import open_bytes
from hfstack.data.sources import Source, iterate_rows
from hfstack.errors import ConfigError, DataError
from hfstack.logs import get_logger
from hfstack.models.loading import (
    is_masked_lm,
    load_causal_lm,
    load_masked_lm,
    load_tokenizer,
    require_model_name,
)
from hfstack.runs.rendering import check_rendering
from hfstack.runs.run import Run, RunArgs
from hfstack.tasks.causal_lm.generate import generate_from_texts
from hfstack.tasks.causal_lm.prompt_format import find_prompt_format
from hfstack.tasks.causal_lm.sampling import SamplingArgs, check_sampling
from hfstack.tasks.masked_lm.fill_mask import describe_candidates, fill_masks
from hfstack.tokens.chat import stop_at_end_of_turn
from hfstack.tokens.rendering import log_odd_turns
from hfstack.tokens.turns import read_turns

logger = get_logger(__name__)


@dataclass
class GenerateArgs(SamplingArgs):
    """Prompts and sampling settings."""

    prompts: list[str] = field(default_factory=list)
    """Prompts; a masked model fills each [MASK] in them."""
    prompts_file: str | None = None
    """File of prompts: text with one a line, or rows with a column `prompt`."""
    max_new_tokens: int = 200
    """Longest completion, in tokens."""
    num_samples: int = 1
    """Completions for each prompt."""
    batch_size: int = 16
    """Prompts per batch."""
    as_chat: bool | None = None
    """Ask by the chat template, each prompt as the user's turn; by default where the model was
    trained with it.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sampling(max_new_tokens=self.max_new_tokens)
        if self.num_samples < 1 or self.batch_size < 1:
            raise ConfigError(
                f"--num_samples {self.num_samples} and --batch_size {self.batch_size} must be 1 "
                "or more"
            )


def main(
    model_args: ModelConfig, generate_args: GenerateArgs, run_args: RunArgs
) -> dict[str, float]:
    """Complete or fill every prompt, print the results and save them."""
    args = generate_args
    with Run.start(__file__, run_args.output_dir, model_args, generate_args, run_args) as run:
        # data
        prompts = [*args.prompts, *read_prompts(args.prompts_file)]
        if not prompts:
            raise ConfigError('no prompts: use --prompts "Once upon a time" or --prompts_file FILE')

        # model
        run.record_inputs(model_args.model_name_or_path)
        tokenizer = load_tokenizer(model_args)
        masked = is_masked_lm(model_args)
        load: Any = load_masked_lm if masked else load_causal_lm
        model = load(model_args, tokenizer).to(Accelerator().device).eval()

        # fill masks
        if masked:
            shown = min(args.top_k or 10, 10)  # candidates for each mask
            fillings = fill_masks(model, tokenizer, prompts, top_k=shown)
            save_rows(run, "fillings", [asdict(filling) for filling in fillings])
            for one in fillings:
                place = f"mask {one.mask + 1} at token {one.position}"
                print(f"{one.text}  {place}: {describe_candidates(one)}")
            return run.finish({"masks": len(fillings)})

        # or complete prompts
        name = require_model_name(model_args)
        prompt_format = find_prompt_format(name, tokenizer, as_chat=args.as_chat)
        how, between = "prompts are continued as plain text", ""
        if prompt_format.kind == "chat":
            how, between = "prompts are turns of the chat template", "\n"
            stop_at_end_of_turn(model, tokenizer)
            log_odd_turns((read_turns(prompt, "user") for prompt in prompts), tokenizer)
        logger.info("%s: %s", how, prompt_format.reason)
        if args.as_chat is None:
            check_rendering(name, tokenizer, chat=prompt_format.kind == "chat")

        completions = generate_from_texts(
            model,
            tokenizer,
            [prompt for prompt in prompts for _ in range(args.num_samples)],
            kind=prompt_format.kind,
            max_new_tokens=args.max_new_tokens,
            **args.sampling(),
            batch_size=args.batch_size,
        )
        save_rows(run, "completions", [one.as_row() for one in completions])
        for one in completions:
            print(f"{one.prompt}{between}{one.completion}\n")

        return run.finish(
            {
                "completions": len(completions),
                "finished_share": sum(one.finished for one in completions) / len(completions),
                "mean_tokens": sum(one.tokens for one in completions) / len(completions),
            }
        )


def read_prompts(path: str | None) -> list[Any]:
    """Return the prompts of a file: its column `prompt`, else `text`, else its lines.

    A prompt is text, or a conversation: a list of turns.
    """
    if path is None:
        return []

    # In a file of prompts a line is a prompt, though in one of documents it may be part of one.
    file = data_file(Path(path)) if Path(path).is_file() else None
    if file is not None and file.format == "txt":
        with open_bytes(file) as lines:
            try:
                texts = [line.decode().rstrip("\r\n") for line in lines]
            except UnicodeDecodeError as error:
                raise DataError(f"--prompts_file {path} is not UTF-8: {error}") from None
        return [text for text in texts if text.strip()]

    prompts: list[Any] = []
    for row in iterate_rows([Source(path)], columns={"prompt", "text"}):
        if (prompt := row.get("prompt", row.get("text"))) is None:
            raise DataError(f"--prompts_file {path} has no column `prompt`, only {', '.join(row)}")
        prompts.append(prompt if isinstance(prompt, list) else str(prompt))
    return prompts


def save_rows(run: Run, name: str, rows: list[dict]) -> None:
    """Save rows to `<name>.jsonl` in the run's directory, and list it in run.json."""
    path = Path(run.output_dir) / f"{name}.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")
    run.add_artifact(name, path.name)


if __name__ == "__main__":
    command_line(main)
