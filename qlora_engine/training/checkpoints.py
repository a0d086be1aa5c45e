"""Training state on disk: complete or absent, verified by hash, free of pickles, enough to go on bit for bit.

A folder ``checkpoint-{step}`` is a PEFT adapter plus ``optimizer.safetensors`` (moments and random states),
``state.json``, ``series.jsonl`` and ``checkpoint.json`` (the SHA-256 of every other file).
"""

import json
import os
import random
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from qlora_engine.adapters.files import WEIGHTS_FILE, adapter_weights, restore_weights
from qlora_engine.adapters.injection import Injected
from qlora_engine.adapters.ranks.resize import Resizing, ranks_in
from qlora_engine.data.batches import Cursor
from qlora_engine.errors import CheckpointUnusable
from qlora_engine.fingerprints import file_sha256
from qlora_engine.training.distributed import ALONE, World
from qlora_engine.training.economy import UNSPARING, Economy
from qlora_engine.training.environment import environment
from qlora_engine.training.export import Exporter
from qlora_engine.training.keepsakes import Keepsakes
from qlora_engine.updates import Logged
from schemas.training import CHECKPOINT_MISMATCH, Hyperparameters

KEPT = 2
FORMAT = 4
MANIFEST_FILE = "checkpoint.json"
STATE_FILE = "state.json"
TENSORS_FILE = "optimizer.safetensors"
SERIES_FILE = "series.jsonl"
RANDOM = "random/"
KEPT_TENSORS = "kept/"
NUMBER = "#"
"""Marks what an optimizer keeps as a number and not as a tensor."""


@dataclass(frozen=True)
class TrainingState:
    """Where a training stands, apart from tensors."""

    step: int
    cursor: Cursor
    """What was taken from the sampler so far. Nothing else is needed to go on: see `data.batches`."""
    loss_first: float | None
    loss_last: float | None
    seconds: float
    """Time spent training so far, in all attempts."""
    best_loss: float | None = None
    """The lowest held-out loss, where early stopping looks for it."""
    best_step: int | None = None
    worse: int = 0
    """Evaluations since then."""
    looked: int = 0
    """The last step after which everything due was evaluated."""
    economy: Economy = UNSPARING
    before: dict[str, Any] | None = None
    """What was measured before the first step, for the model card."""

    @classmethod
    def of(cls, described: dict[str, Any]) -> "TrainingState":
        """From JSON."""
        nested = {
            "cursor": Cursor(**described["cursor"]),
            "economy": Economy(**described["economy"]),
        }
        return cls(**described | nested)


@dataclass(frozen=True)
class Identity:
    """Everything that a training's numbers depend on: a checkpoint of another one is of no use."""

    hyperparameters: Hyperparameters
    base_sha256: str
    manifest_sha256: str

    def described(self) -> dict[str, Any]:
        """As JSON. Whole and not as a hash, so that a later release can still tell what was meant."""
        chosen = self.hyperparameters.model_dump(mode="json", exclude_defaults=True)
        return asdict(self) | {
            "hyperparameters": self.hyperparameters.model_dump(mode="json"),
            "chosen": sorted(chosen),
        }

    def differences(self, written: Mapping[str, Any]) -> list[str]:
        """What sets this training apart from the one `described` in a checkpoint.

        A hyperparameter that is younger than the checkpoint had its default then, whatever that was called;
        one that is gone does not matter, unless something else than its default was chosen.
        """
        before, fields = written["hyperparameters"], Hyperparameters.model_fields
        gone = [name for name in written.get("chosen", ()) if name not in fields]
        found = [f"{name} was {before[name]!r}, which this engine does not know" for name in gone]
        try:
            known = {name: value for name, value in before.items() if name in fields}
            then = Hyperparameters.model_validate(known).model_dump(mode="json")
        except ValidationError as error:
            return [*found, f"its hyperparameters are refused today: {error.errors()[0]['msg']}"]
        found += [
            f"{name} was {then[name]!r} and is {value!r}"
            for name, value in self.hyperparameters.model_dump(mode="json").items()
            if value != then[name]
        ]
        if written["base_sha256"] != self.base_sha256:
            found.append("the base model is another")
        if written["manifest_sha256"] != self.manifest_sha256:
            found.append("the dataset is another")
        return found


@dataclass(frozen=True)
class Held:
    """A moment of a training, whole: in memory, or read from a checkpoint."""

    weights: dict[str, torch.Tensor]
    """The adapter's, as they are saved."""
    tensors: dict[str, torch.Tensor]
    """Moments, keepsakes and random states."""
    described: dict[str, Any]


@dataclass(frozen=True)
class Checkpoints:
    """Writes and reads the checkpoints of one training."""

    folder: Path
    injected: Injected
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    exporter: Exporter
    series: Path
    identity: Identity
    keepsakes: Keepsakes
    resizing: Resizing
    world: World = ALONE

    def write(self, state: TrainingState) -> Path:
        """A complete folder, renamed into place; older ones but the last are removed.

        Called by all processes together: the first one writes, for each of them has random states of its own.
        """
        final = self.folder / f"checkpoint-{state.step}"
        held = self.hold(state)
        others = self._of_others(held)
        if not self.world.first:
            return final
        partial = self.folder / f".checkpoint-{state.step}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            self._fill(partial, state, held, others)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)  # on a full disk its room is needed
            raise
        _remove(final)
        partial.rename(final)
        _sync(self.folder)
        self._forget_old()
        return final

    def _of_others(self, held: Held) -> dict[str, torch.Tensor]:
        """Random states of the other processes; called by all of them together."""
        states = {name: tensor for name, tensor in held.tensors.items() if name.startswith(RANDOM)}
        return {
            _of_process(rank) + name: tensor
            for rank, found in enumerate(self.world.gather(states))
            for name, tensor in found.items()
            if rank > 0
        }

    def _fill(self, partial: Path, state: TrainingState, held: Held, others: dict[str, torch.Tensor]) -> None:
        self.exporter.write(partial, state.step)
        save_file(held.tensors | others, partial / TENSORS_FILE)
        described = {
            "format": FORMAT,
            "identity": self.identity.described(),
            "environment": environment(self._device),
            "processes": self.world.size,
        } | held.described
        (partial / STATE_FILE).write_text(json.dumps(described, allow_nan=False) + "\n", "utf-8")
        shutil.copyfile(self.series, partial / SERIES_FILE)
        _write_manifest(partial)

    def hold(self, state: TrainingState) -> Held:
        """Everything but the series, in main memory."""
        return Held(
            weights=adapter_weights(self.injected.model),
            tensors=self._tensors(),
            described={
                "training": asdict(state),
                "scheduler": _plain(self.scheduler.state_dict()),
                "python_random": random.getstate(),
            },
        )

    def put_back(self, held: Held) -> TrainingState:
        """Go back to where `held` was held, ranks included."""
        self.resizing.shape(ranks_in(held.weights))
        restore_weights(self.injected.model, held.weights)
        by_name = dict(self.injected.trainable())
        for name, parameter in by_name.items():
            prefix = f"{name}/"
            self.optimizer.state[parameter] = {
                key.removeprefix(prefix).removesuffix(NUMBER): _placed(key, tensor, parameter)
                for key, tensor in held.tensors.items()
                if key.startswith(prefix)
            }
        self.keepsakes.tensors.clear()
        self.keepsakes.tensors |= {
            key.removeprefix(KEPT_TENSORS): tensor.clone()
            for key, tensor in held.tensors.items()
            if key.startswith(KEPT_TENSORS)
        }
        self.scheduler.load_state_dict(held.described["scheduler"])
        for group, rate in zip(self.optimizer.param_groups, self.scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        version, internal, gauss = held.described["python_random"]
        random.setstate((version, tuple(internal), gauss))
        _restore_random(held.tensors)
        return TrainingState.of(held.described["training"])

    def restore(self, folder: Path, step: int) -> TrainingState:
        """Put model, optimizer, schedule and random states back to where `folder` was written, at `step`.

        Random states are those of a process: written by another number of them, all have those of the first.

        Raises:
            CheckpointUnusable: damaged, incomplete, or of another training.
        """
        verify(folder)
        try:
            described = json.loads((folder / STATE_FILE).read_text("utf-8"))
            if described.get("format") != FORMAT:
                raise CheckpointUnusable(
                    f"{folder.name} has format {described.get('format')!r}, but this engine reads {FORMAT};"
                    " begin anew",
                    code=CHECKPOINT_MISMATCH,
                )
            state = TrainingState.of(described["training"])
            if others := self.identity.differences(described["identity"]):
                raise CheckpointUnusable(
                    f"{folder.name} is of another training ({'; '.join(others)}); begin anew",
                    code=CHECKPOINT_MISMATCH,
                )
            if state.step != step:
                raise CheckpointUnusable(f"{folder.name} is of step {state.step}, not {step}; begin anew")
            tensors = load_file(folder / TENSORS_FILE)
            if described["processes"] == self.world.size:
                mine = _of_process(self.world.rank)
                tensors |= {
                    name.removeprefix(mine): tensor
                    for name, tensor in tensors.items()
                    if name.startswith(mine)
                }
            self.put_back(Held(load_file(folder / WEIGHTS_FILE), tensors, described))
            if self.world.first:
                shutil.copyfile(folder / SERIES_FILE, self.series)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise CheckpointUnusable(
                f"{folder.name} cannot be read ({error}); resume from an older one"
            ) from error
        return state

    @property
    def _device(self) -> torch.device:
        return self.injected.trainable()[0][1].device

    def elsewhere(self, folder: Path) -> Logged | None:
        """What people should know if `folder`, which was restored, was written by something else."""
        before = json.loads((folder / STATE_FILE).read_text("utf-8"))["environment"]
        now = environment(self._device)
        changed = [
            f"{name} was {before.get(name)} and is {now.get(name)}"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name)
        ]
        if not changed:
            return None
        return Logged(
            level="warning",
            code="resumed_elsewhere",
            message=f"{folder.name} was written elsewhere ({'; '.join(changed)}): the training goes on,"
            " but the last bits of its numbers may differ from those of an unbroken one",
        )

    def processes_of(self, folder: Path) -> int:
        """How many processes wrote a checkpoint that was restored."""
        return int(json.loads((folder / STATE_FILE).read_text("utf-8"))["processes"])

    def _tensors(self) -> dict[str, torch.Tensor]:
        tensors = {}
        for name, parameter in self.injected.trainable():
            for key, value in self.optimizer.state[parameter].items():
                if isinstance(value, torch.Tensor):
                    # bitsandbytes shares its tables between parameters, and a file cannot.
                    tensors[f"{name}/{key}"] = value.detach().cpu().contiguous().clone()
                else:
                    tensors[f"{name}/{key}{NUMBER}"] = torch.tensor(value)
        kept = {
            KEPT_TENSORS + name: tensor.detach().cpu().clone()
            for name, tensor in self.keepsakes.tensors.items()
        }
        return tensors | kept | _random_states()

    def _forget_old(self) -> None:
        kept = sorted(self.folder.glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]))
        for folder in kept[:-KEPT]:
            _remove(folder)


def verify(folder: Path) -> None:
    """Compare every file with the hash that was written beside it.

    Raises:
        CheckpointUnusable: a file is missing or differs.
    """
    try:
        hashes = json.loads((folder / MANIFEST_FILE).read_text("utf-8"))["sha256"]
        wrong = [name for name, sha256 in hashes.items() if file_sha256(folder / name) != sha256]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointUnusable(
            f"{folder.name} is incomplete ({error}); resume from an older one"
        ) from error
    if wrong:
        raise CheckpointUnusable(f"{folder.name}/{wrong[0]} is damaged; resume from an older checkpoint")


def _remove(folder: Path) -> None:
    """At once: whoever is killed in between leaves no half of a checkpoint under its name."""
    if folder.exists():
        shutil.rmtree(gone := folder.with_name(f".{folder.name}.gone"), ignore_errors=True)
        folder.rename(gone)
        shutil.rmtree(gone)


def _write_manifest(folder: Path) -> None:
    files = sorted(file for file in folder.iterdir())
    hashes = {file.name: file_sha256(file) for file in files}
    manifest = folder / MANIFEST_FILE
    manifest.write_text(json.dumps({"sha256": hashes}, indent=2) + "\n", "utf-8")
    for file in (*files, manifest):
        _sync(file)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """The parts of a scheduler's state that are data; its lambdas are made again from the hyperparameters."""
    return {key: value for key, value in state.items() if key != "lr_lambdas"} | {
        "lr_lambdas": [None] * len(state["lr_lambdas"])
    }


def _placed(key: str, tensor: torch.Tensor, parameter: torch.nn.Parameter) -> torch.Tensor | float:
    if key.endswith(NUMBER):
        return tensor.item()
    # AdamW keeps its step counters on the CPU, whatever the device.
    return tensor if key.endswith("/step") else tensor.to(parameter.device)


def _of_process(rank: int) -> str:
    return f"process/{rank}/"


def _random_states() -> dict[str, torch.Tensor]:
    _, keys, position, has_gauss, gauss = np.random.get_state()
    states = {
        f"{RANDOM}torch": torch.get_rng_state(),
        f"{RANDOM}numpy": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
        f"{RANDOM}numpy_rest": torch.tensor([position, has_gauss, gauss], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        states[f"{RANDOM}cuda"] = torch.cuda.get_rng_state()
    return states


def _restore_random(tensors: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(tensors[f"{RANDOM}torch"])
    position, has_gauss, gauss = tensors[f"{RANDOM}numpy_rest"].tolist()
    keys = tensors[f"{RANDOM}numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, int(position), int(has_gauss), gauss))
    if torch.cuda.is_available() and f"{RANDOM}cuda" in tensors:
        torch.cuda.set_rng_state(tensors[f"{RANDOM}cuda"])
