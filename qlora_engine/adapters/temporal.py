"""Temporal-aware LoRA: the bottleneck of a vision layer's LoRA also looks at the frames before and after.

    y = W x + s · B (z + conv(z) + conv'(mean over a frame's rows of z)),    z = A x

Both convolutions run along the frames of one clip, one kernel per rank direction (depthwise), and start at
zero: before the first step this is exactly LoRA. A layer of rank r with kernels of k frames gets 2·r·k
parameters. The bases are depthwise convolutions in a bottleneck (ST-Adapter, arXiv:2206.13559), convolution
inside of LoRA's bottleneck (Conv-LoRA, arXiv:2401.17868) and a global beside a local branch.

A layer sees rows, not clips; how they are laid out, whoever calls the model says with `showing`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as functional
from bitsandbytes.nn.modules import Linear4bit
from peft import LoraConfig
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora.bnb import Linear4bit as LoraLinear4bit
from peft.tuners.lora.layer import LoraVariant

from qlora_engine.adapters.fused import FusedLinear4bit
from qlora_engine.errors import EngineError
from qlora_engine.models.families.base import ClipLayout

KERNEL = 3
"""Frames that a kernel spans unless told otherwise."""
LOCAL, GLOBAL = 0, 1


class ClipLayoutMismatch(EngineError):
    """The vision part was run on rows whose clips nobody named, or on others than those named."""

    code = "clip_layout_mismatch"


class TemporalMergeRefused(EngineError):
    """Weights that look at other frames are no part of one matrix, so they cannot be merged into it."""

    code = "temporal_merge_refused"


class ShownClips:
    """Which clips the model is being shown; all temporal layers of a model share one."""

    def __init__(self) -> None:
        self._clips: tuple[ClipLayout, ...] = ()
        self._shown = False

    @contextmanager
    def showing(self, clips: Sequence[ClipLayout]) -> Iterator[None]:
        """These clips, until the block ends.

        For backward passes they stay until the next block: gradient checkpointing runs layers again there.
        """
        self._clips, self._shown = tuple(clips), True
        try:
            yield
        finally:
            self._shown = False

    def shapes(self, rows: int) -> list[tuple[int, int]]:
        """Steps in time and rows per step of each clip, for a layer that sees `rows` rows.

        Raises:
            ClipLayoutMismatch: these are not the rows of the clips that are being shown.
        """
        if not self._shown and not torch.is_grad_enabled():
            raise ClipLayoutMismatch(
                "a temporal-aware adapter ran outside of `showing`; say which clips the model is shown"
            )
        in_tower = [(clip.steps, clip.rows * clip.columns) for clip in self._clips]
        handed_on = [(clip.steps, clip.step_tokens) for clip in self._clips]
        for laid_out in (in_tower, handed_on):
            if sum(steps * each for steps, each in laid_out) == rows:
                return laid_out
        raise ClipLayoutMismatch(
            f"a temporal-aware layer got {rows} rows, which are not those of the {len(self._clips)} clips"
            f" that the model is shown ({', '.join(map(str, self._clips[:3])) or 'none'}); name the clips in"
            " the order of the rows"
        )


@contextmanager
def showing(model: Any, clips: Sequence[ClipLayout]) -> Iterator[None]:
    """Run forward or generate inside: `model` is shown these clips, in the order of its rows.

    Nothing happens for models without temporal layers.
    """
    shown_clips = next(
        (module.shown_clips for module in model.modules() if isinstance(module, TemporalLayer)), None
    )
    if shown_clips is None:
        yield
        return
    with shown_clips.showing(clips):
        yield


class Kernels(torch.nn.Module):
    """The two depthwise kernels of one layer: `weight` is [2, rank, frames], local and global."""

    def __init__(self, rank: int, frames: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2, rank, frames))

    def forward(self, hidden: torch.Tensor, shapes: Sequence[tuple[int, int]]) -> torch.Tensor:
        """`hidden` of shape [rows, rank] with its neighbours in time mixed in, clip by clip."""
        parts, start = [], 0
        for (frames, rows), alike in groupby(shapes):  # neighbours of one shape go together
            clips = sum(1 for _ in alike)
            end = start + clips * frames * rows
            parts.append(self._mixed(hidden[start:end].view(clips, frames, rows, -1)).flatten(0, 2))
            start = end
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _mixed(self, hidden: torch.Tensor) -> torch.Tensor:
        weight = self.weight.to(hidden.dtype)
        return (
            hidden
            + _along_time(hidden, weight[LOCAL])
            + _along_time(hidden.mean(dim=2, keepdim=True), weight[GLOBAL])
        )


def _along_time(hidden: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """`hidden` [clips, frames, rows, rank] convolved along its frames; nothing precedes or follows a clip."""
    frames, width = hidden.shape[1], kernel.shape[1]
    padded = functional.pad(hidden, (0, 0, 0, 0, width // 2, width // 2))
    mixed = padded[:, :frames] * kernel[:, 0]
    for offset in range(1, width):
        mixed = mixed + padded[:, offset : offset + frames] * kernel[:, offset]
    return mixed


@dataclass
class TemporalLoraConfig(LoraConfig):  # type: ignore[misc]
    """A `LoraConfig` some of whose layers look along time."""

    temporal_kernel: int = field(default=KERNEL, metadata={"help": "Frames that a kernel spans; odd."})
    temporal_modules: list[str] = field(
        default_factory=list, metadata={"help": "Full names of the layers that look along time."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        # Dense layers that are not named get PEFT's own class, because the answer for them is None.
        self._register_custom_module({torch.nn.Linear: _temporal_layer})


class TemporalLayer:
    """What PEFT's LoRA layers need to become temporal-aware; goes before them in the order of inheritance."""

    shown_clips: ShownClips
    adapter_layer_names: tuple[str, ...] = (*LoraLinear.adapter_layer_names, "lora_temporal")

    def update_layer(self, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        if not hasattr(self, "lora_temporal"):
            self.lora_temporal = torch.nn.ModuleDict()
        super().update_layer(adapter_name, *args, **kwargs)  # type: ignore[misc]

    def resolve_lora_variant(self, *, config: TemporalLoraConfig, **_: Any) -> LoraVariant:
        return TemporalVariant()


class TemporalLinear4bit(TemporalLayer, LoraLinear4bit):  # type: ignore[misc]
    """Beside a quantised layer."""


class TemporalLinear(TemporalLayer, LoraLinear):  # type: ignore[misc]
    """Beside a dense layer, such as one that was dequantised."""


def _temporal_layer(target: Any, adapter_name: str, config: TemporalLoraConfig, **kwargs: Any) -> Any:
    if kwargs.get("target_name") not in config.temporal_modules:
        ordinary = isinstance(target, Linear4bit)
        return FusedLinear4bit(target, adapter_name, config=config, **kwargs) if ordinary else None
    kind = TemporalLinear4bit if isinstance(target, Linear4bit) else TemporalLinear
    return kind(target, adapter_name, config=config, **kwargs)


class TemporalVariant(LoraVariant):  # type: ignore[misc]
    """The arithmetic, as PEFT asks for it."""

    @staticmethod
    def init(module: Any, adapter_name: str, config: TemporalLoraConfig, **_: Any) -> None:
        kernels = Kernels(module.r[adapter_name], config.temporal_kernel)
        module.lora_temporal[adapter_name] = kernels.to(module.lora_A[adapter_name].weight.device)

    @staticmethod
    def forward(
        module: Any, active_adapter: str, x: torch.Tensor, result: torch.Tensor, **_: Any
    ) -> torch.Tensor:
        hidden = module.lora_A[active_adapter](module.lora_dropout[active_adapter](x))
        rows = hidden.flatten(0, -2)
        mixed = module.lora_temporal[active_adapter](rows, module.shown_clips.shapes(len(rows)))
        update: torch.Tensor = module.lora_B[active_adapter](mixed.view(hidden.shape))
        scaling: float = module.scaling[active_adapter]
        return result + update * scaling

    @staticmethod
    def merge_safe(module: Any, active_adapter: str, orig_weight: torch.Tensor) -> torch.Tensor:
        refuse_to_merge(module, active_adapter)
        merged: torch.Tensor = orig_weight + module.get_delta_weight(active_adapter).to(orig_weight.dtype)
        return merged

    @staticmethod
    def merge_unsafe(module: Any, active_adapter: str, orig_weight: torch.Tensor) -> None:
        refuse_to_merge(module, active_adapter)
        orig_weight.data += module.get_delta_weight(active_adapter).to(orig_weight.dtype)

    @staticmethod
    def unmerge(module: Any, active_adapter: str, orig_weight: torch.Tensor) -> torch.Tensor:
        without: torch.Tensor = orig_weight - module.get_delta_weight(active_adapter).to(orig_weight.dtype)
        return without


def share_shown_clips(model: Any) -> ShownClips:
    """Let all temporal layers of `model` look at one shown_clips."""
    shown_clips = ShownClips()
    for module in model.modules():
        if isinstance(module, TemporalLayer):
            module.shown_clips = shown_clips
    return shown_clips


def temporal_parameters(model: Any) -> list[tuple[str, torch.nn.Parameter]]:
    """Names and kernels, in the model's order."""
    return [(name, parameter) for name, parameter in model.named_parameters() if is_temporal(name)]


def is_temporal(parameter_name: str) -> bool:
    """Whether a parameter of this name is a temporal kernel."""
    return ".lora_temporal." in parameter_name


def refuse_to_merge(module: Any, adapter_name: str) -> None:
    """
    Raises:
        TemporalMergeRefused: the layer's temporal weights are not zero.
    """
    if bool(module.lora_temporal[adapter_name].weight.any()):
        raise TemporalMergeRefused(
            "the adapter's temporal weights are not zero: what a frame gives depends on its neighbours, which"
            " no merged matrix can do; keep the adapter beside the base model"
        )
