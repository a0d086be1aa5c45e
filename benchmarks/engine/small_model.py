"""A SmolVLM that decoding is measured beside."""

from pathlib import Path

BATCH, IMAGE = 8, 128


def make_model(folder: Path) -> None:
    """A SmolVLM of 25 million random parameters: large enough that its arithmetic is what takes the time."""
    from qlora_engine.models.tiny import make_tokenizer
    from qlora_engine.models.tiny_random import smolvlm_of, write_smolvlm

    text = {
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
    }
    vision = {
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": IMAGE,
        "patch_size": 16,
    }
    tokenizer = make_tokenizer()
    write_smolvlm(folder, tokenizer, smolvlm_of(tokenizer, text, vision))
