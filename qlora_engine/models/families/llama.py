"""Llama and the many checkpoints of its architecture (SmolLM2, TinyLlama, Vicuna …): text alone."""

from qlora_engine.models.families.causal_text import CausalText

LLAMA = CausalText("llama", (("llama", "LlamaForCausalLM"),))
