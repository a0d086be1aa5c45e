"""Compares merged models with base and adapter, by transformers, peft and bitsandbytes alone.

Run: ``python stock_logits.py BASE ADAPTER MERGED...``; the last line has the largest difference of a logit to
the base with its adapter, of each merged model and of the base alone, as JSON.
"""

import json
import sys
from pathlib import Path

import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

base_folder, adapter_folder, *merged_folders = map(Path, sys.argv[1:])
quantization = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.float32,
)
base = AutoModelForImageTextToText.from_pretrained(
    base_folder, dtype=torch.float32, quantization_config=quantization
)
for module in base.modules():
    if isinstance(module, Linear4bit):
        module.support_avx512bf16_for_cpu = False

side = base.config.vision_config.image_size
pixels = torch.randn(1, 2, 3, side, side, generator=torch.Generator().manual_seed(0))
image = base.config.image_token_id
shown = (side // base.config.vision_config.patch_size // base.config.scale_factor) ** 2
ids = torch.tensor([[*[image] * shown, 5, 6, *[image] * shown, 7, 8, 9, 10]])


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=ids, pixel_values=pixels).logits


alone = logits(base)
wanted = logits(PeftModel.from_pretrained(base, adapter_folder))
found = {"base": alone} | {
    folder.name: logits(AutoModelForImageTextToText.from_pretrained(folder)) for folder in merged_folders
}
print(json.dumps({name: float((each - wanted).abs().max()) for name, each in found.items()}))
