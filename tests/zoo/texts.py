"""The texts that the models of the zoo are trained on for two steps."""

import json
from pathlib import Path

SENTENCES = [
    "Once upon a time a small fox found a red ball near the river.",
    "The owl was kind, so she gave the ball back to the fox.",
    "A brave rabbit ran up the hill and saw the whole forest.",
    "They were happy and went home when the sun was low.",
    "In the morning the bear baked bread for all of his friends.",
    "Nobody knew where the cat had hidden the silver key.",
]
ROWS = 24
_THINGS = frozenset({"fox", "ball", "hill", "forest", "bread", "key"})


def write_rows(folder: Path) -> dict[str, Path]:
    """Write the rows of every recipe, and return their files."""
    texts = [f"{number} {SENTENCES[number % len(SENTENCES)]}" for number in range(ROWS)]
    rows = {
        "lm": [{"text": text} for text in texts],
        "sft": [{"prompt": f"Tell me {text[:12]}", "completion": text[12:40]} for text in texts],
        "masked": [
            {"prompt": text.replace(" the ", "<mask>")} for text in texts if " the " in text
        ],
        "prompts": [{"prompt": text[: 8 + index % 9]} for index, text in enumerate(texts)],
        "pairs": [
            {"prompt": f"Say {index}", "chosen": text[:30], "rejected": text[30:55]}
            for index, text in enumerate(texts)
        ],
        "kto": [
            {"prompt": f"Say {index}", "completion": text[:30], "label": index % 2 == 0}
            for index, text in enumerate(texts)
        ],
        "labels": [
            {"text": text[:40], "label": ["good", "bad"][index % 2]}
            for index, text in enumerate(texts)
        ],
    }
    words = [text.rstrip(".").split() for text in texts]
    rows["tags"] = [
        {"tokens": each, "tags": ["B-THING" if word in _THINGS else "O" for word in each]}
        for each in words
    ]
    rows["spans"] = [
        {
            "id": str(index),
            "question": "What is the third word?",
            "context": text,
            "answers": {"text": [each[2]], "answer_start": [text.index(f" {each[2]} ") + 1]},
        }
        for index, (text, each) in enumerate(zip(texts, words, strict=True))
    ]
    rows["translations"] = [{"source": text, "target": text[::-1]} for text in texts]

    files = {}
    for name, content in rows.items():
        files[name] = folder / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps(row) + "\n" for row in content))
    return files
