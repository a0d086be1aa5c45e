"""Values that domain tests share: small, valid and recognisable."""

from datetime import UTC, datetime

from schemas.datasets import DatasetFacts, ModelFacts, Problem
from schemas.events.agent import Capabilities
from schemas.events.dataset import (
    DatasetRegistered,
    DatasetUploaded,
    DatasetUploadStarted,
    DatasetValidated,
    DatasetValidationStarted,
)
from schemas.events.job import Evaluation, JobRequested, PinnedInput, ProgressPoint
from schemas.events.model import (
    ModelRegistered,
    ModelUploaded,
    ModelUploadStarted,
    ModelValidated,
    ModelValidationStarted,
)
from schemas.objects import StoredObject
from schemas.training import AdapterFacts, Hyperparameters


def identifier(prefix: str, number: int = 1) -> str:
    return f"{prefix}_{number:032x}"


def sha(number: int) -> str:
    return f"{number:064x}"


def stored(path: str, number: int = 1, key: str | None = None) -> StoredObject:
    return StoredObject(path=path, key=key or f"{ORGANIZATION}/{path}", size_bytes=10, sha256=sha(number))


USER = identifier("usr")
ORGANIZATION = identifier("org")
WORKSPACE = identifier("ws")
DATASET = identifier("ds")
MODEL = identifier("mdl")
JOB = identifier("job")
AGENT = identifier("agt", 1)
OTHER_AGENT = identifier("agt", 2)
UPLOAD = identifier("upl", 1)
OTHER_UPLOAD = identifier("upl", 2)
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)

LISTING = stored("listing.json", 1)
MODEL_LISTING = stored("listing.json", 2)
MANIFEST = stored("manifest.json", 3)
FACTS = DatasetFacts(
    clips=10, examples=20, frames=160, duration_seconds=16.0, size_bytes=4000, smallest_clip_frames=8
)
MODEL_FACTS = ModelFacts(
    family="smolvlm",
    architecture="SmolVLMForConditionalGeneration",
    parameters=1000,
    quantized_linear_layers=10,
    vision_linear_layers=4,
    connector_linear_layers=1,
    text_linear_layers=5,
    context_tokens=512,
    image_size=32,
)
ADAPTER_FACTS = AdapterFacts(
    family="smolvlm", base_model_sha256=sha(4), rank=8, alpha=16.0, trainable_parameters=100, steps=10
)
PROBLEM = Problem(code="missing_clip", where="captions.jsonl:3", message="clip a.mp4 is missing; add it")
EVALUATION = Evaluation(examples=4, loss=1.0, exact_match=None)
POINT = ProgressPoint(
    step=1, loss=2.0, learning_rate=1e-3, grad_norm=1.0, tokens=10, tokens_per_second=5.0, step_seconds=2.0
)
CAPABILITIES = Capabilities(
    profile="cpu",
    device="a CPU",
    cpu_cores=2,
    memory_bytes=2**32,
    four_bit_kernel=True,
    versions={"torch": "2"},
)

DATASET_REGISTERED = DatasetRegistered(
    name="shapes",
    description="",
    format="video_text",
    owner_id=USER,
    listing=LISTING,
    file_count=11,
    size_bytes=4000,
)
DATASET_UPLOADED = (
    DATASET_REGISTERED,
    DatasetUploadStarted(upload_id=UPLOAD),
    DatasetUploaded(upload_id=UPLOAD),
)
DATASET_VALIDATING = (*DATASET_UPLOADED, DatasetValidationStarted(agent_id=AGENT, attempt=1))
DATASET_VALIDATED = DatasetValidated(
    attempt=1, facts=FACTS, manifest=MANIFEST, content_sha256=MANIFEST.sha256
)
DATASET_READY = (*DATASET_VALIDATING, DATASET_VALIDATED)

MODEL_REGISTERED = ModelRegistered(
    name="tiny", description="", owner_id=USER, listing=MODEL_LISTING, file_count=3, size_bytes=9000
)
MODEL_UPLOADED = (
    MODEL_REGISTERED,
    ModelUploadStarted(upload_id=UPLOAD),
    ModelUploaded(upload_id=UPLOAD),
)
MODEL_VALIDATING = (*MODEL_UPLOADED, ModelValidationStarted(agent_id=AGENT, attempt=1))
MODEL_VALIDATED = ModelValidated(attempt=1, facts=MODEL_FACTS, content_sha256=sha(4))
MODEL_READY = (*MODEL_VALIDATING, MODEL_VALIDATED)

JOB_REQUESTED = JobRequested(
    name="first",
    owner_id=USER,
    dataset_id=DATASET,
    model_id=MODEL,
    dataset=PinnedInput(listing=LISTING, content_sha256=MANIFEST.sha256),
    model=PinnedInput(listing=MODEL_LISTING, content_sha256=sha(4)),
    manifest=MANIFEST,
    hyperparameters=Hyperparameters(),
    pool="default",
    priority="normal",
    labels={},
    max_attempts=3,
)
