"""A tiny untrained BERT with a WordPiece tokenizer that has no eos token, as every BERT's."""

from pathlib import Path

from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerBase, set_seed

from hfstack.tokens.train_tokenizer import train_tokenizer
from tests.conftest import SENTENCES


def tiny_bert_tokenizer() -> PreTrainedTokenizerBase:
    """A WordPiece tokenizer of at most 200 tokens with [CLS] and [SEP], without eos."""
    return train_tokenizer(SENTENCES * 20, kind="wordpiece", vocab_size=200, lowercase=True)


def save_tiny_bert(folder: Path) -> Path:
    """Save a 2-layer BERT (context 64) as a masked language model: it has neither a reward head nor
    a pooler.
    """
    tokenizer = tiny_bert_tokenizer()
    set_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
