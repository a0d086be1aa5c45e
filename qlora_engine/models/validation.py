"""Judges a base model by using it: load in 4 bits, count layers per part, take one training step."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from qlora_engine.adapters.injection import inject
from qlora_engine.data.collate import Collator
from qlora_engine.data.frames import ClipFrames
from qlora_engine.errors import ClipError, EngineError, ModelRefused, SequenceTooLong
from qlora_engine.memory import is_out_of_memory
from qlora_engine.models.families.base import Shown, tried_clip
from qlora_engine.models.loading import Loaded, load_model
from qlora_engine.models.shape import model_shape
from qlora_engine.models.template_judge import EXCHANGE, try_template
from qlora_engine.models.uneven_widths import USUAL_ERROR, relative_error
from qlora_engine.models.weights import read_headers
from qlora_engine.training.forward import Runner
from qlora_engine.training.loop import Emit
from qlora_engine.updates import ModelVerdict, Preparing
from schemas.datasets import Example, ModelFacts, Problem, one_turn
from schemas.training import Hyperparameters, ModelValidationSpec

PROBE = Example(clip="probe", messages=one_turn(EXCHANGE[0].text, EXCHANGE[1].text), row=1)


def validate_model(spec: ModelValidationSpec, emit: Emit) -> ModelVerdict:
    """Facts, or the reason why the model cannot be trained."""
    emit(Preparing(phase="loading_model"))
    try:
        loaded = load_model(spec.model_folder)
        facts = _facts(loaded)
        check_chat_template(loaded)
        check_quantization(loaded)
        take_training_step(loaded)
    except EngineError as error:
        problem = Problem(code=error.code, where=Path(spec.model_folder).name, message=error.message)
        return ModelVerdict(facts=None, problems=(problem,))
    return ModelVerdict(facts=facts)


def check_chat_template(loaded: Loaded) -> None:
    """Render a prompt, first in a process of its own when the template is the checkpoint's.

    See `template_judge` for why.

    Raises:
        ModelRefused: code ``unusable_chat_template``.
    """
    shown = tried(loaded)
    if loaded.prompts.brings_a_template:
        try_template(loaded.family, loaded.model.config, loaded.tokenizer, shown)
    loaded.prompts.encode(EXCHANGE, shown)


def tried(loaded: Loaded) -> Shown | None:
    if loaded.vision is None:
        return None
    try:
        return tried_clip(loaded.vision)
    except ClipError as error:
        raise ModelRefused(
            f"the preprocessor files allow no clip of usual size ({error.message});"
            " upload the checkpoint's own",
            code="bad_config",
        ) from error


def check_quantization(loaded: Loaded) -> None:
    """Compare one layer of each width with the weights that it was made from.

    Raises:
        ModelRefused: code ``unfaithful_quantization``.
    """
    stored = read_headers(loaded.folder)
    shapes: set[tuple[int, int]] = set()
    for name, layer in loaded.linear_layers():
        shape, source = (layer.in_features, layer.out_features), stored.get(f"{name}.weight")
        if shape in shapes or source is None:
            continue
        shapes.add(shape)
        with safe_open(loaded.folder / source.file, "pt") as opened:
            error = relative_error(layer, opened.get_tensor(f"{name}.weight"))
        if error > USUAL_ERROR:
            raise ModelRefused(
                f"{name}, {shape[0]} wide, is off by {error:.0%} once quantised to 4 bits on this node;"
                " a tenth is usual; use a model with other widths, or an agent with other hardware",
                code="unfaithful_quantization",
            )


def take_training_step(loaded: Loaded) -> None:
    """One forward and backward pass of a LoRA over every part, on two frames of noise.

    Raises:
        ModelRefused: the numbers are not finite or no gradient arrives (code ``training_step_failed``).
    """
    modalities = loaded.family.modalities
    injected = inject(loaded, Hyperparameters(rank=1, alpha=1, target_modalities=modalities))
    injected.model.train()
    shown = tried(loaded)
    probe = PROBE if shown is not None else PROBE.model_copy(update={"clip": ""})
    collator = Collator(loaded.prompts, Noise(shown), loaded.context_tokens)
    try:
        loss = Runner(injected.model, loaded).loss(collator.batch([probe])).total
        loss.backward()  # type: ignore[no-untyped-call]
    except SequenceTooLong as error:
        raise ModelRefused(
            f"config.json gives the model a context of {loaded.context_tokens} tokens, which not even two"
            " frames and a short caption fit into; correct max_position_embeddings",
            code="context_too_small",
        ) from error
    except EngineError:
        raise
    except Exception as error:  # whatever numbers that contradict one another provoke
        if is_out_of_memory(error):
            raise
        raise ModelRefused(
            f"a training step fails ({type(error).__name__}: {error}); the weights do not fit config.json",
            code="training_step_failed",
        ) from error
    without = [name for name, parameter in injected.trainable() if parameter.grad is None]
    if without or not bool(torch.isfinite(loss)):
        raise ModelRefused(
            f"a training step gives loss {float(loss.detach())} and {len(without)} adapter tensors"
            " without gradient; the weights are damaged",
            code="training_step_failed",
        )


@dataclass(frozen=True)
class Noise:
    """Frames that need no clip; for a model that sees none, none are asked for."""

    shown: Shown | None

    def of(self, clip: str) -> ClipFrames:
        assert self.shown is not None, clip  # noqa: S101 - an invariant
        layout = self.shown.layout
        size = (layout.frames, 3, layout.height, layout.width)
        noise = torch.randint(0, 256, size, generator=torch.Generator().manual_seed(0))
        return ClipFrames(noise.to(torch.uint8), self.shown.moments, layout)

    def ahead(self, clips: Iterable[str]) -> None:
        """There is nothing to prepare."""


def _facts(loaded: Loaded) -> ModelFacts:
    layers = Counter(loaded.family.modality(name) for name, _ in loaded.linear_layers())
    return ModelFacts(
        family=loaded.family.name,
        architecture=type(loaded.model).__name__,
        parameters=loaded.parameters,
        quantized_linear_layers=layers.total(),
        vision_linear_layers=layers["vision"],
        connector_linear_layers=layers["connector"],
        text_linear_layers=layers["text"],
        context_tokens=loaded.context_tokens,
        image_size=0 if loaded.vision is None else loaded.vision.image_size,
        shape=model_shape(loaded),
    )
