"""Silences what libraries say to themselves in every training, so that a log has only what people can use.

Exactly what is known to be harmless; anything else is still printed. Free of torch.
"""

import logging
import warnings


def hush() -> None:
    """Call once, before torch is imported."""
    # bitsandbytes asks for an optional package whose CPU kernel `loading` turns off anyway.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # PEFT reads a property that transformers has renamed; both names work in the versions that we allow.
    warnings.filterwarnings(
        "ignore", message=r"`is_gradient_checkpointing` is deprecated", category=FutureWarning
    )
