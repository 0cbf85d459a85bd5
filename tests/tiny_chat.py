"""A tiny untrained model whose tokenizer has the chat template of hfstack's own tokenizers."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from hfstack.tokens.train_tokenizer import CHAT_TEMPLATE, CHAT_TOKENS


def save_tiny_chat(source: Path, folder: Path, *, seed: int = 0) -> Path:
    """Save a model of the shape of `source`, with the tokens and template of a conversation.

    Its weights are large and its embeddings untied, so that even its likeliest answers vary.
    """
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_special_tokens({"additional_special_tokens": list(CHAT_TOKENS)})
    tokenizer.chat_template = CHAT_TEMPLATE

    config = AutoConfig.from_pretrained(source, vocab_size=len(tokenizer))
    config.tie_word_embeddings = False
    model = AutoModelForCausalLM.from_config(config)
    torch.manual_seed(seed)
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.5)

    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
