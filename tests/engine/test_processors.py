"""What families make is what the whole processors of transformers make; only where torchvision is there."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from transformers.utils import is_torchvision_available

from qlora_engine.data.collate import normalised
from qlora_engine.data.frames import ClipFrames
from qlora_engine.models.families.base import Moments, exchange
from qlora_engine.models.loading import load_model
from qlora_engine.models.tiny_random import make_random_model

if not is_torchvision_available():
    pytest.skip("torchvision is not installed, nor needed", allow_module_level=True)

CPU = torch.device("cpu")
PER_SECOND = 5.0
LEVEL = 1 / 255
"""The two resizings may round a pixel to neighbouring levels."""


def whole_processor(name: str, folder: Path, tokenizer: Any, template: str) -> Any:
    from transformers import Qwen2_5_VLProcessor, Qwen3VLProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    kinds: dict[str, tuple[Any, Any]] = {
        "qwen2_5_vl": (Qwen2_5_VLProcessor, Qwen2VLVideoProcessor),
        "qwen3_vl": (Qwen3VLProcessor, Qwen3VLVideoProcessor),
    }
    kind, videos = kinds[name]
    return kind(
        image_processor=Qwen2VLImageProcessor(patch_size=8),
        tokenizer=tokenizer,
        video_processor=videos.from_pretrained(folder, cap_pixels_per_frame=True, patch_size=8),
        chat_template=template,
    )


@pytest.mark.parametrize(("width", "height", "frames"), [(64, 48, 4), (90, 33, 5), (130, 200, 3)])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_inputs_are_those_of_the_whole_processor(
    name: str, width: int, height: int, frames: int, tmp_path: Path
) -> None:
    from transformers.video_utils import VideoMetadata

    folder = make_random_model(tmp_path / name, name)
    loaded = load_model(str(folder), CPU)
    vision, prompts = loaded.vision, loaded.prompts
    assert vision is not None
    template = prompts.chat.own_template  # type: ignore[attr-defined]
    processor = whole_processor(name, folder, loaded.tokenizer, template)
    coarse = torch.rand(frames, 3, 8, 8, generator=torch.Generator().manual_seed(width))
    pixels = functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1).mul(255)
    pixels = pixels.to(torch.uint8)
    indices = [3 * index for index in range(frames)]
    turn = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Why?"}]}
    theirs = processor(
        text=[processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)],
        videos=[pixels],
        video_metadata=[VideoMetadata(40, fps=PER_SECOND, duration=8.0, frames_indices=list(indices))],
        do_sample_frames=False,
        return_tensors="pt",
    )
    layout = vision.layout(width, height, frames)
    resized = functional.interpolate(
        pixels.float(), (layout.height, layout.width), mode="bicubic", antialias=True
    )
    moments = Moments(tuple(index / PER_SECOND for index in indices), 8.0)
    clip = ClipFrames(resized.round().clamp(0, 255).to(torch.uint8), moments, layout)
    encoded = prompts.encode(exchange("Why?", "So."), clip.shown)
    ids = torch.tensor([encoded.ids[: encoded.last_answer]])
    ours = vision.inputs(ids, [[normalised(clip, vision, CPU, torch.float32)]])

    assert torch.equal(ids, theirs["input_ids"])
    assert ours.keys() == theirs.keys() - {"input_ids", "attention_mask", "video_metadata"}
    for field in ours.keys() - {"pixel_values_videos"}:
        assert torch.equal(ours[field], theirs[field].to(ours[field].dtype)), field
    difference = (ours["pixel_values_videos"] - theirs["pixel_values_videos"]).abs().max()
    assert float(difference) <= LEVEL / min(vision.std) + 1e-6
