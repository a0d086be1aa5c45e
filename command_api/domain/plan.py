"""What a training will amount to, before any agent has seen it."""

from collections.abc import Sequence
from dataclasses import dataclass

from schemas.datasets import DatasetFacts, Manifest
from schemas.events.agent import Capabilities
from schemas.events.job import JobRequested
from schemas.footprint import Preflight
from schemas.preflight import Device, dispatches, least_workload, predict, room, timed
from schemas.training import Hyperparameters, held_out_count, total_steps


@dataclass(frozen=True, slots=True)
class Plan:
    """An estimate where a clip has several examples; TrainingStarted brings the exact figures."""

    total_steps: int
    training_examples: int
    held_out_examples: int
    epochs: float | None
    """None when steps are counted in tokens: how many an example has, only the model's tokenizer tells."""


def facts_of(manifest: Manifest) -> DatasetFacts:
    """The figures that a plan needs."""
    smallest = min(manifest.clips, key=lambda clip: clip.frames, default=None)
    own = any(example.split for example in manifest.examples)
    return DatasetFacts(
        clips=len(manifest.clips),
        examples=len(manifest.examples),
        frames=sum(clip.frames for clip in manifest.clips),
        duration_seconds=sum(clip.duration_seconds for clip in manifest.clips),
        size_bytes=sum(clip.size_bytes for clip in manifest.clips),
        smallest_clip_frames=smallest.frames if smallest else 0,
        smallest_clip=smallest.path if smallest else "",
        characters=sum(len(turn.text) for example in manifest.examples for turn in example.messages),
        split_groups=len(set(manifest.groups())),
        validation_examples=sum(each.split == "validation" for each in manifest.examples) if own else None,
    )


def plan_training(facts: DatasetFacts, hyperparameters: Hyperparameters) -> Plan:
    """Split the dataset by the rule that the engine uses, and count the optimizer steps."""
    held_out = _held_out(facts, hyperparameters.held_out_fraction)
    training = facts.examples - held_out
    steps = total_steps(hyperparameters, training)
    if hyperparameters.max_steps is None:
        return Plan(steps, training, held_out, epochs=hyperparameters.epochs)
    if hyperparameters.tokens_per_step is not None:
        return Plan(steps, training, held_out, epochs=None)
    return Plan(steps, training, held_out, epochs=steps * hyperparameters.batch_size / training)


def _held_out(facts: DatasetFacts, fraction: float) -> int:
    if facts.validation_examples is not None:
        return facts.validation_examples
    groups = facts.split_groups or facts.clips
    return min(facts.examples - 1, round(facts.examples * held_out_count(groups, fraction) / groups))


CHARACTERS_PER_TOKEN = 6
"""No fewer, in any usual language and vocabulary: so a text's tokens are not overestimated."""


def foreseen(
    request: JobRequested, facts: DatasetFacts, plan: Plan, nodes: Sequence[Capabilities]
) -> Preflight | None:
    """The least that the training takes on the roomiest of `nodes`; None where nothing is known of either.

    Tokens are reckoned from characters, and clips not at all: the engine, which has the tokenizer, looks
    again before the first step. So nothing that would fit is refused here.
    """
    if request.model_shape is None or not nodes:
        return None
    node = max(nodes, key=room)
    chosen = request.hyperparameters
    tokens = facts.characters / facts.examples / CHARACTERS_PER_TOKEN
    work = least_workload(tokens, plan.total_steps, chosen)
    gpu = node.profile in ("cuda", "jetson")
    given = predict(request.model_shape, work, chosen, Device.of(gpu=gpu, chosen=chosen))
    return timed(given, node.profile, dispatches=dispatches(request.model_shape, work, chosen))


def fits(preflight: Preflight, node: Capabilities) -> bool:
    """Whether so much room is there at all, whatever else runs on the node."""
    return preflight.peak_bytes <= room(node)


def too_large(preflight: Preflight, nodes: Sequence[Capabilities]) -> str:
    """Why a job is refused, for people."""
    most = max(map(room, nodes))
    return (
        f"the training needs at least {preflight.summed()}, but the roomiest agent of the pool has"
        f" {most / 2**30:.2f} GiB for it; lower batch_size or micro_batch_size, turn on"
        " gradient_checkpointing, take a smaller model, or add an agent with more memory"
    )
