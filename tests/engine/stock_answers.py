"""A stranger's script: uses the adapter with stock transformers, peft and bitsandbytes, and nothing of ours.

argv: base folder, adapter folder, request file. The request has the clips' frames as uint8 and the prompts.
"""

import json
import sys
from pathlib import Path

import bitsandbytes
import numpy as np
import torch
from peft import PeftModel
from transformers import AutoTokenizer, BitsAndBytesConfig, SmolVLMForConditionalGeneration

base_folder, adapter_folder, request_file = sys.argv[1:]
request = np.load(request_file)
prompts = json.loads(str(request["prompts"]))
described = json.loads((Path(adapter_folder) / "kinora_adapter.json").read_text("utf-8"))["frames"]

quantization = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
)
base = SmolVLMForConditionalGeneration.from_pretrained(
    base_folder, dtype=torch.float32, quantization_config=quantization
)
for module in base.modules():
    if isinstance(module, bitsandbytes.nn.Linear4bit):
        module.support_avx512bf16_for_cpu = False
model = PeftModel.from_pretrained(base, adapter_folder).eval()
tokenizer = AutoTokenizer.from_pretrained(base_folder)

answers = []
for frames, prompt in zip(request["frames"], prompts, strict=True):
    content = [{"type": "image"}] * len(frames) + [{"type": "text", "text": prompt}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    text = text.replace("<image>", "<fake_token_around_image><global-img><image><fake_token_around_image>")
    inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    pixels = torch.from_numpy(frames).float() / 255
    pixels = (pixels - torch.tensor(described["mean"]).view(3, 1, 1)) / torch.tensor(described["std"]).view(
        3, 1, 1
    )
    with torch.no_grad():
        generated = model.generate(**inputs, pixel_values=pixels[None], do_sample=False, max_new_tokens=8)
    answers.append(
        tokenizer.decode(generated[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    )
print(json.dumps(answers))
