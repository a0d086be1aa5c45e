"""The merged model that a job asked for, made when its adapter is saved and the training's memory is free."""

import gc
from pathlib import Path

import torch

from qlora_engine.errors import EngineError
from qlora_engine.memory import Exhausted, tried
from qlora_engine.models.loading import Loaded
from qlora_engine.models.writing import check_room, outline, tensor_names, type_to_store, weight_bytes
from qlora_engine.spans import span
from qlora_engine.stopping import StopWish
from qlora_engine.training.export import note_merged
from qlora_engine.training.loop import Emit
from qlora_engine.training.merging import merge
from qlora_engine.updates import Alive, Logged, Preparing, TrainingDone
from schemas.training import MERGED_FOLDER, MergedDtype, MergedFacts, TrainingSpec


class MergeAbandoned(EngineError):
    """Somebody wants the engine to stop."""

    code = "merge_abandoned"


def check_room_for_merged(base: Loaded, dtype: MergedDtype, output: Path) -> None:
    """Before the first step: what has no room then should not be found out after the last one.

    Raises:
        NoRoom: see `writing.check_room`.
    """
    tensors = tensor_names(outline(type(base.model), base.folder))
    check_room(output / MERGED_FOLDER, weight_bytes(tensors, type_to_store(base.folder, dtype)))


def with_merged(
    done: TrainingDone,
    spec: TrainingSpec,
    architecture: str,
    device: torch.device,
    emit: Emit,
    stop: StopWish,
) -> TrainingDone:
    """Merge into a folder inside of the adapter's; `done` with what came of it.

    A training is worth more than its merged model: whatever prevents that is a warning, because the adapter
    can be merged anywhere, at any time.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    adapter = Path(done.adapter_folder)

    def told(phase: str, count: int, total: int) -> None:
        if stop.mode is not None:
            raise MergeAbandoned("the job was asked to stop")
        if phase == "loading" or count:
            emit(Preparing(phase="merging", done=count, total=total))
        else:
            emit(Alive())

    def made() -> MergedFacts:
        return merge(
            Path(spec.model_folder),
            adapter,
            adapter / MERGED_FOLDER,
            dtype=spec.hyperparameters.merged_dtype,
            device=device,
            base_sha256=done.facts.base_model_sha256,
            told=told,
        )

    try:
        with span(emit, "merge"):
            merged = tried(made)
    except EngineError as error:
        return _without(done, error.message, emit)
    if isinstance(merged, Exhausted):
        return _without(done, f"the memory did not suffice ({merged.message})", emit)
    note_merged(adapter, merged, architecture)
    return done.model_copy(update={"facts": done.facts.model_copy(update={"merged": merged})})


def _without(done: TrainingDone, why: str, emit: Emit) -> TrainingDone:
    emit(
        Logged(
            level="warning",
            code="not_merged",
            message=f"export is 'merged', but there is no merged model: {why}. The adapter is complete;"
            " kinora models merge makes one of it",
        )
    )
    return done
