"""Hold a conversation, and make the rows of it that training reads."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hfstack.errors import DataError


@dataclass
class Conversation:
    """The turns so far, behind an optional system turn.

    A model without a chat template reads one text at a time: of such a conversation each exchange
    is a text of its own.
    """

    system: str | None = None
    exchanges: list[tuple[str, str]] = field(default_factory=list)
    """What the user wrote, and what was answered."""

    def turns_with(self, message: str) -> list[dict[str, Any]]:
        """Return all turns, with the user's next message as the last."""
        return [*self._turns(), {"role": "user", "content": message}]

    def keep(self, message: str, answer: str, *, goes_on: bool = False) -> None:
        """Add a message and its answer; `goes_on` when the message is `last_text`."""
        if goes_on:
            self.exchanges.pop()
        self.exchanges.append((message, answer))

    def undo(self) -> str | None:
        """Remove the last message with its answer and return it; None without one."""
        return self.exchanges.pop()[0] if self.exchanges else None

    def last_text(self) -> str:
        """Return the last message with its answer as one text.

        Raises:
            DataError: there is none.
        """
        if not self.exchanges:
            raise DataError("there is no text yet to continue")
        return "".join(self.exchanges[-1])

    def rows(self, *, chat: bool) -> list[dict[str, Any]]:
        """Return rows that sft reads: one conversation, or a text for each exchange."""
        if not self.exchanges:
            return []
        if chat:
            return [{"messages": self._turns()}]
        return [{"text": message + answer} for message, answer in self.exchanges]

    def _turns(self) -> list[dict[str, Any]]:
        turns = [{"role": "system", "content": self.system}] if self.system else []
        for message, answer in self.exchanges:
            turns += [
                {"role": "user", "content": message},
                {"role": "assistant", "content": answer},
            ]
        return turns


def preference_row(
    turns: list[dict[str, Any]], chosen: tuple[str, str], rejected: tuple[str, str], *, chat: bool
) -> dict[str, Any]:
    """Return a preference pair as reward and dpo read it, with the models' names.

    Args:
        turns: the conversation up to the message that was answered twice.
        chosen: the better answer, and the model that gave it.
        rejected: the other.
        chat: whether prompt and answers are turns, or plain text.
    """
    names = {"chosen_model": chosen[1], "rejected_model": rejected[1]}
    if not chat:
        texts = {"prompt": str(turns[-1]["content"])}
        return {**texts, "chosen": chosen[0], "rejected": rejected[0], **names}

    answers = {
        key: [{"role": "assistant", "content": text}]
        for key, (text, _) in (("chosen", chosen), ("rejected", rejected))
    }
    return {"prompt": turns, **answers, **names}


def append_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Append rows to a .jsonl file, each a line that is there whole or not at all.

    Raises:
        DataError: the file has another ending, its last line is torn, or it cannot be written.
    """
    if path.suffix != ".jsonl":
        raise DataError(f"{path}: rows are kept as JSON Lines: give a name that ends in .jsonl")

    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            _refuse_torn_end(path, file)
            file.write(lines.encode("utf-8", errors="backslashreplace"))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}") from None


def _refuse_torn_end(path: Path, file: Any) -> None:
    """Raise DataError when the last line of a file has no end, as after a full disk."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return
    file.seek(size - 1)
    if file.read(1) != b"\n":
        raise DataError(f"{path} does not end with a whole line: complete it, or name another file")
