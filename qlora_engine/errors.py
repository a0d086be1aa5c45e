"""Why training or validation cannot go on; each error crosses the process border as an `EngineFailed`.

EngineError
├── ModelRefused            the base model cannot be used, whatever we try
├── DatasetError
│   ├── CaptionsError       the captions file as a whole cannot be read
│   ├── RowRefused          one of its rows cannot be used
│   └── ClipError           one clip cannot be used
│       ├── ClipUndecodable
│       ├── ClipWithoutVideo
│       ├── ClipTooSlow
│       ├── ClipShapeRefused
│       └── FramesExceedClip
├── SequenceTooLong         an example does not fit into the model's context
├── ControlTokenInCaption   a caption holds a token that steers the model
├── EmptyResponse           the chat template leaves nothing of a response
├── OutOfMemory             memory does not suffice, whatever is done without
├── DoesNotFit              the memory that is here cannot suffice
├── NonFiniteLoss           the numbers blew up before an optimizer step
├── TooFewDevices           more processes are asked for than this node has devices
├── PeerLost                another process of this training is gone
└── CheckpointUnusable      a checkpoint is damaged or belongs to another training
"""

from schemas.errors import KinoraError
from schemas.training import CHECKPOINT_UNUSABLE, DOES_NOT_FIT


class EngineError(KinoraError):
    """The root of what the engine raises on purpose."""

    code = "engine_error"


class ModelRefused(EngineError):
    """The base model cannot be used; `code` says why."""

    code = "model_load_failed"


class DatasetError(EngineError):
    """The dataset cannot be used as it is."""

    code = "data_unreadable"


class CaptionsError(DatasetError):
    """The captions file as a whole cannot be read."""

    code = "captions_unreadable"


class RowRefused(DatasetError):
    """One row of the captions file cannot be used; whoever reads it says which."""

    code = "bad_caption_row"


class ClipError(DatasetError):
    """One clip cannot be used."""

    code = "clip_unreadable"


class ClipUndecodable(ClipError):
    """The file is empty, truncated, damaged or no video container."""

    code = "undecodable_clip"


class ClipWithoutVideo(ClipError):
    """The file holds no video stream, such as an audio recording."""

    code = "no_video_stream"


class ClipTooSlow(ClipError):
    """The file takes longer to decode than a file may."""

    code = "clip_too_slow"


class ClipShapeRefused(ClipError):
    """The model can make nothing of a clip of this shape."""

    code = "clip_shape"


class FramesExceedClip(ClipError):
    """More frames are asked for than the clip has."""

    code = "frames_exceed_clip"


class SequenceTooLong(EngineError):
    """An example does not fit into the model's context."""

    code = "sequence_too_long"


class ControlTokenInCaption(EngineError):
    """A caption holds a token that steers the model, such as the image placeholder."""

    code = "control_token_in_caption"


class EmptyResponse(EngineError):
    """The chat template leaves nothing of a response, so that a row teaches silence."""

    code = "empty_response"


class OutOfMemory(EngineError):
    """Memory does not suffice, and nothing is left to do without."""

    code = "oom"


class DoesNotFit(EngineError):
    """The training would need more memory than there is; said before the first step, with the sum."""

    code = DOES_NOT_FIT


class NonFiniteLoss(EngineError):
    """Loss or gradient is not a number; the optimizer step was not taken."""

    code = "non_finite_loss"


class TooFewDevices(EngineError):
    """More processes are asked for than this node has CUDA devices."""

    code = "too_few_devices"


class ProcessesDiffer(EngineError):
    """Who started the processes of a training has started others than it can have."""

    code = "processes_differ"


class PeerLost(EngineError):
    """A process that shares this training is gone, or says nothing any more."""

    code = "peer_lost"
    retryable = True


class CheckpointUnusable(EngineError):
    """A checkpoint is damaged or belongs to another training; another attempt need not take it."""

    code = CHECKPOINT_UNUSABLE
    retryable = True
