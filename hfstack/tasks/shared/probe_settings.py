"""Define what post-training recipes measure before and after, on the same probes."""

from dataclasses import dataclass, field

from hfstack.data.sources import Source, as_sources
from hfstack.errors import ConfigError


@dataclass
class ProbeArgs:
    """What is measured before and after training, to say what got better or worse."""

    probe_rows: int = 32
    """Held-out rows, and documents of general text, that are measured before and after; 0 measures
    nothing.
    """
    probe_tokens: int = 64
    """Tokens of the longest answer to a held-out prompt."""
    probe_datasets: list[Source] = field(default_factory=list)
    """General text (a column `text`) that the model is not to forget; by default stories of the
    demo corpus.
    """
    eval_tasks: list[str] = field(default_factory=list)
    """Task files (docs/recipes/score.md) that are asked before and after, and at each evaluation,
    at most --probe_rows rows each.
    """
    probe_judge_url: str | None = None
    """Base URL of an OpenAI-compatible endpoint that grades the answers to held-out prompts, before
    and after.
    """
    probe_judge_model: str = ""
    """Model of that endpoint, by the name that it has there."""
    probe_rubric_file: str | None = None
    """Text file that tells that judge what a good answer is; a general rubric by default."""

    def __post_init__(self) -> None:
        self.probe_datasets = as_sources(self.probe_datasets)
        if isinstance(self.eval_tasks, str):  # a YAML names one without a list
            self.eval_tasks = [self.eval_tasks]
        if self.eval_tasks and not self.probe_rows:
            raise ConfigError("--eval_tasks are asked --probe_rows rows each, and those are 0")
        if self.probe_judge_url and not self.probe_judge_model:
            raise ConfigError(
                "--probe_judge_url needs --probe_judge_model, the name of a model there"
            )
        if self.probe_rubric_file and not self.probe_judge_url:
            raise ConfigError("--probe_rubric_file needs a judge: --probe_judge_url")
        if self.probe_judge_url and not self.probe_rows:
            raise ConfigError("--probe_judge_url grades --probe_rows answers, and those are 0")
