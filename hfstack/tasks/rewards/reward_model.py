"""Score completions with a reward model, through its own tokenizer."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers import PreTrainedTokenizerBase
from trl import ModelConfig

from hfstack.errors import CheckpointError, ConfigError
from hfstack.logs import get_logger
from hfstack.models.contents import check_kind
from hfstack.models.context import context_length
from hfstack.models.loading import load_tokenizer
from hfstack.runs.rendering import check_rendering, follow_rendering, read_rendering
from hfstack.tasks.preferences.encode import encode_answer, leave_open, truncate_pair
from hfstack.tasks.preferences.reward_model import load_reward_model, score_sequences
from hfstack.tokens.turns import extract_text, split_tools

logger = get_logger(__name__)

REWARD_BATCH_SIZE = 16  # completions of one forward pass


class RewardModel:
    """Scores completions with a model of one label.

    Texts are encoded as the reward recipe encodes them: a conversation by the reward model's own
    chat template, plain text with its eos. Whatever the policy's tokens were, the text is tokenised
    again. Where its run.json says on which of the two it was trained, it is given that.

    Args:
        name_or_path: a folder (of a model, or of a LoRA adapter with its head) or a Hub id.
        device: where the model runs.
        batch_size: completions of one forward pass.
        as_text: read conversations as plain text, prompt and answer; None where the run.json says
            that it was trained on plain text.
        dtype: of the weights; float32 by default.

    Raises:
        CheckpointError: there is no such model, or it is no reward model: its head was never
            trained.
        ConfigError: it has several labels, its tokenizer does not fit, or `as_text` contradicts its
            run.json.
    """

    def __init__(
        self,
        name_or_path: str,
        *,
        device: torch.device | str = "cpu",
        batch_size: int = REWARD_BATCH_SIZE,
        as_text: bool | None = None,
        dtype: str = "float32",
    ) -> None:
        self.name_or_path = name_or_path
        self.name = name_or_path.rstrip("/").rpartition("/")[2]
        self.batch_size = batch_size
        args = ModelConfig(model_name_or_path=name_or_path, dtype=dtype)
        self.tokenizer = load_tokenizer(args)

        check_kind(name_or_path, ("reward model", "sequence classifier"))

        untrained: list[str] = []
        model = load_reward_model(args, self.tokenizer, new_modules=untrained)

        if untrained:
            raise CheckpointError(
                f"--reward_model {name_or_path} is no reward model: its weights lack "
                f"{', '.join(untrained)}, so its rewards would be random; train one with: hfstack "
                "run reward"
            )

        self.model = cast(Any, model).to(device).eval().requires_grad_(False)

        # the form of what it was trained on, where its run.json says
        self.as_text = follow_rendering(
            name_or_path, as_text, flag="reward_as_text", true_means="plain", usual=False
        )
        known = read_rendering(name_or_path)
        self.as_chat = known is not None and known[0].chat
        self._follows = known is not None and as_text is None
        if known is not None:
            check_rendering(name_or_path, self.tokenizer, chat=self.as_chat)

        self.max_length = context_length(self.model.config)
        self._warned: set[str] = set()

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        *,
        finished: Sequence[bool] | None = None,
        **columns: Any,
    ) -> list[float]:
        """Return the score of each completion, in the model's own number type.

        That of the training around it (`--bf16`) does not matter; other columns are not read.

        Args:
            prompts: texts or conversations.
            completions: texts, or the assistant's messages.
            finished: False for a completion that was truncated, which is read without an end; None
                where all are finished.
        """
        pad = cast(int, self.tokenizer.pad_token_id)
        ended = [True] * len(completions) if finished is None else finished
        encoded = [
            self.encode(prompt, answer, finished=bool(whole))
            for prompt, answer, whole in zip(prompts, completions, ended, strict=True)
        ]
        with torch.autocast(self.model.device.type, enabled=False):
            return score_sequences(
                self.model, encoded, pad_token_id=pad, batch_size=self.batch_size
            )

    def score(self, prompts: Sequence[Any], answers: Sequence[str]) -> list[float]:
        """Return the scores of answers; prompts are texts or conversations."""
        turns = [
            text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            for prompt, text in zip(prompts, answers, strict=True)
        ]
        return self(prompts, turns)

    def encode(self, prompt: Any, completion: Any, *, finished: bool = True) -> list[int]:
        """Return the tokens to score; a prompt that is too long loses its beginning."""
        prompt, completion = self._in_own_form(prompt, completion)
        if not isinstance(prompt, str) and self.tokenizer.chat_template is None:
            raise ConfigError(
                f"the reward model {self.name} has no chat template for prompts that are "
                "conversations: was it trained on plain text, then set --reward_as_text true; for "
                "plain prompts set --as_chat false"
            )

        tools = None
        if not isinstance(prompt, str):
            prompt, tools = split_tools(prompt)
        token_ids, begin, end = encode_answer(self.tokenizer, prompt, completion, tools)
        if not finished:
            token_ids = leave_open(self.tokenizer, token_ids, end)
        if self.max_length is None or len(token_ids) <= self.max_length:
            return token_ids

        # The reward is read at the end of the answer, so what is lost is the prompt's beginning.
        self._warn_once(
            "length",
            f"reads {self.max_length} tokens, a prompt with its answer has {len(token_ids)}: "
            "prompts lose their beginning",
        )
        return truncate_pair(token_ids, begin, end, max_length=self.max_length)

    def _in_own_form(self, prompt: Any, completion: Any) -> tuple[Any, Any]:
        """Return prompt and completion as text, or as turns, whichever the model reads."""
        turns = not isinstance(prompt, str)
        if turns and self.as_text:
            if self._follows and len(prompt) > 1:
                raise ConfigError(
                    f"reward model {self.name} was trained on plain text, and a prompt has "
                    f"{len(prompt)} turns: set --reward_as_text true to join their contents"
                )
            if self._follows:
                self._warn_once(
                    "form", "was trained on plain text: it reads turns without a chat template"
                )
            return extract_text(prompt), extract_text(completion)

        if not turns and self.as_chat:
            self._warn_once(
                "form", "was trained on conversations: it reads plain prompts as a user's turn"
            )
            answer = {"role": "assistant", "content": extract_text(completion)}
            return [{"role": "user", "content": prompt}], [answer]
        return prompt, completion

    def _warn_once(self, key: str, what: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            logger.warning("reward model %s %s (logged once)", self.name, what)

    def compare_tokenizer(self, policy: PreTrainedTokenizerBase) -> None:
        """Log whether the reward model's tokenizer differs from the policy's."""
        if self.tokenizer.get_vocab() == policy.get_vocab():
            logger.info("reward model %s has the policy's vocabulary", self.name)
            return

        logger.info(
            "reward model %s has a tokenizer of its own (%d tokens, the policy %d): completions "
            "are decoded and tokenised again",
            self.name,
            len(self.tokenizer),
            len(policy),
        )
