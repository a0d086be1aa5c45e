"""Loads an adapter without Kinora and gives the tuned answers again, by stock libraries alone.

    python reproduce_answers.py BASE_FOLDER ADAPTER_FOLDER CLIPS_FOLDER

A temporal-aware adapter needs temporal_lora.py beside this file. Prints one line per held-out clip and ends
with how many answers are word for word the recorded ones. Covers constant-rate, unrotated clips and
checkpoints whose chat template takes images, such as the demo's.
"""

import json
import sys
from pathlib import Path

import av
import bitsandbytes
import torch
from av.video.reformatter import Interpolation
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoTokenizer, BitsAndBytesConfig

BICUBIC = (
    Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT | Interpolation.FULL_CHR_H_INT
)
base_folder, adapter_folder, clips_folder = (Path(argument) for argument in sys.argv[1:])
prepared = json.loads((adapter_folder / "kinora_adapter.json").read_text("utf-8"))
recorded = [
    json.loads(line) for line in (adapter_folder / "held_out_answers.jsonl").read_text("utf-8").splitlines()
]

facts = prepared["facts"]
dtype = getattr(torch, facts["compute_dtype"])
quantization = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type=facts["quantization"],
    bnb_4bit_use_double_quant=facts["double_quantization"],
    bnb_4bit_compute_dtype=dtype,
)
base = AutoModelForImageTextToText.from_pretrained(base_folder, dtype=dtype, quantization_config=quantization)
for module in base.modules():  # the packed weights of AVX512-BF16 machines give other answers
    if isinstance(module, bitsandbytes.nn.Linear4bit):
        module.support_avx512bf16_for_cpu = False
clips: list[int] = []
"""The frames of each clip that is being shown; only temporal-aware adapters look at it."""
if facts["temporal"]:
    from temporal_lora import load_temporal_adapter

    model, clips = load_temporal_adapter(base, adapter_folder)
else:
    model = PeftModel.from_pretrained(base, adapter_folder).eval()
tokenizer = AutoTokenizer.from_pretrained(base_folder)


def pixels_of(clip: Path) -> torch.Tensor:
    """The frames in the middle of equal stretches of time: [frames, 3, size, size]."""
    wanted = prepared["frames"]
    size = (wanted["resize"]["width"], wanted["resize"]["height"])
    with av.open(str(clip)) as container:
        pictures = [
            frame.reformat(*size, "rgb24", interpolation=BICUBIC).to_ndarray()
            for frame in container.decode(video=0)
        ]
    count = wanted["count"]
    chosen = [pictures[int((2 * index + 1) * len(pictures) / (2 * count))] for index in range(count)]
    resized = torch.stack([torch.from_numpy(picture).permute(2, 0, 1) for picture in chosen]).float()
    mean, std = (torch.tensor(wanted[name]).view(3, 1, 1) for name in ("mean", "std"))
    return (resized / 255 - mean) / std


def prompt_of(text: str, frames: int) -> str:
    """The chat template with one image token per frame: at this scale factor each frame is one token."""
    content = [{"type": "image"}] * frames + [{"type": "text", "text": text}]
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    return chat.replace("<image>", "<fake_token_around_image><global-img><image><fake_token_around_image>")


same = 0
for row in recorded:
    pixels = pixels_of(clips_folder / row["video"])
    inputs = tokenizer(prompt_of(row["prompt"], len(pixels)), add_special_tokens=False, return_tensors="pt")
    clips[:] = [len(pixels)]
    with torch.no_grad():
        generated = model.generate(**inputs, pixel_values=pixels[None], do_sample=False, max_new_tokens=32)
    answer = tokenizer.decode(generated[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    same += answer == row["answer"]
    print(f"{row['video']}: {answer}")
print(f"{same} of {len(recorded)} answers are the recorded ones")
sys.exit(same != len(recorded))
