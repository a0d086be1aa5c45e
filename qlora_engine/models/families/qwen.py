"""Qwen2, Qwen2.5 and Qwen3: text alone. Qwen3 answers without thinking, as it is trained here."""

from qlora_engine.models.families.causal_text import CausalText

QWEN = CausalText("qwen", (("qwen2", "Qwen2ForCausalLM"), ("qwen3", "Qwen3ForCausalLM")))
