"""A SmolVLM that decoding is measured beside."""

from pathlib import Path

BATCH, IMAGE = 8, 128


def make_model(folder: Path) -> None:
    """A SmolVLM of 25 million random parameters: large enough that its arithmetic is what takes the time."""
    import torch
    from transformers import LlamaConfig, SmolVLMConfig, SmolVLMForConditionalGeneration
    from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig

    from qlora_engine.models.families import smolvlm
    from qlora_engine.models.tiny import make_tokenizer
    from qlora_engine.models.tiny_random import write_preprocessor

    tokenizer = make_tokenizer()
    text = LlamaConfig(
        vocab_size=(len(tokenizer) + 63) // 64 * 64,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    vision = SmolVLMVisionConfig(
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE,
        patch_size=16,
    )
    config = SmolVLMConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids(smolvlm.IMAGE),
        scale_factor=4,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    SmolVLMForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_preprocessor(folder, "smolvlm")
