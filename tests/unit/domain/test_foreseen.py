"""A job that no node of its pool has room for is refused with the sum; one that may fit never is."""

import pytest

from command_api.domain.plan import fits, foreseen, plan_training, too_large
from schemas.datasets import DatasetFacts
from schemas.events.agent import Capabilities
from schemas.events.job import JobRequested
from schemas.footprint import LinearShape, ModelShape, PartShape
from schemas.preflight import DISPATCH_SECONDS, timed
from schemas.training import Hyperparameters
from tests.unit.domain.job_story import JOB_REQUESTED

SEVEN_BILLION = ModelShape(
    parts=(
        PartShape(
            modality="text",
            linears=(
                LinearShape(inputs=3584, outputs=18944, count=84),
                LinearShape(inputs=3584, outputs=3584, count=84),
            ),
            layers=28,
            width=3584,
            query_width=3584,
            key_width=512,
            mlp_width=18944,
            gated=True,
        ),
    ),
    dense_parameters=1_090_000_000,
    vocabulary=152_064,
)
FACTS = DatasetFacts(
    clips=0,
    examples=100,
    frames=0,
    duration_seconds=0,
    size_bytes=0,
    smallest_clip_frames=0,
    characters=60_000,
    split_groups=100,
)


def node(gibibytes: int, gpu: int = 0) -> Capabilities:
    return Capabilities(
        profile="cuda" if gpu else "cpu",
        device="a node",
        cpu_cores=2,
        memory_bytes=gibibytes * 2**30,
        gpu_memory_bytes=gpu * 2**30,
        four_bit_kernel=True,
        versions={},
    )


def asked(**chosen: object) -> JobRequested:
    return JOB_REQUESTED.model_copy(
        update={"model_shape": SEVEN_BILLION, "hyperparameters": Hyperparameters.model_validate(chosen)}
    )


@pytest.mark.parametrize(("nodes", "fitting"), [((node(4),), False), ((node(4), node(64, gpu=24)), True)])
def test_the_roomiest_node_decides(nodes: tuple[Capabilities, ...], fitting: bool) -> None:
    request = asked(batch_size=1)
    plan = plan_training(FACTS, request.hyperparameters)
    preflight = foreseen(request, FACTS, plan, nodes)
    assert preflight is not None
    assert preflight.peak_bytes == sum(part.size_bytes for part in preflight.parts)
    assert any(fits(preflight, each) for each in nodes) is fitting


@pytest.mark.parametrize(("reserved", "fitting"), [(0, True), (1, False)])
def test_what_a_node_keeps_for_others_is_no_room(reserved: int, fitting: bool) -> None:
    here = node(10).model_copy(update={"reserved_bytes": reserved * 2**30})
    request = asked(batch_size=1)
    preflight = foreseen(request, FACTS, plan_training(FACTS, request.hyperparameters), [here])
    assert preflight is not None
    assert fits(preflight, here) is fitting
    assert f"has {10 - reserved - 0.703125:.2f} GiB for it" in too_large(preflight, [here])


def test_the_refusal_shows_the_sum_and_what_there_is() -> None:
    request = asked()
    preflight = foreseen(request, FACTS, plan_training(FACTS, request.hyperparameters), [node(4)])
    assert preflight is not None
    told = too_large(preflight, [node(4)])
    assert "base weights" in told
    assert "has 3.30 GiB" in told


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"batch_size": 4}, {"batch_size": 8}),
        ({"gradient_checkpointing": True}, {}),
        ({"rank": 8}, {"rank": 64}),
        ({"optimizer": "adamw_8bit"}, {}),
        ({"micro_batch_size": 1}, {}),
        ({"double_quantization": True}, {"double_quantization": False}),
    ],
)
def test_what_is_said_to_take_less_takes_less(one: dict[str, object], other: dict[str, object]) -> None:
    peaks = []
    for chosen in (one, other):
        request = asked(**chosen)
        preflight = foreseen(
            request, FACTS, plan_training(FACTS, request.hyperparameters), [node(64, gpu=80)]
        )
        assert preflight is not None
        peaks.append(preflight.peak_bytes)
    assert peaks[0] < peaks[1]


def test_nothing_is_said_of_models_and_pools_that_nothing_is_known_of() -> None:
    request = asked()
    plan = plan_training(FACTS, request.hyperparameters)
    assert foreseen(request, FACTS, plan, []) is None
    assert foreseen(request.model_copy(update={"model_shape": None}), FACTS, plan, [node(4)]) is None


@pytest.mark.parametrize("chosen", [{"max_steps": 100}, {"max_steps": 100, "micro_batch_size": 1}])
def test_a_tiny_model_takes_the_time_that_it_takes_to_set_off_its_layers(chosen: dict[str, object]) -> None:
    tiny = PartShape(
        modality="text", linears=(LinearShape(inputs=8, outputs=8, count=14),), layers=2, width=8
    )
    shape = ModelShape(parts=(tiny,), dense_parameters=8, vocabulary=8)
    request = asked(**chosen).model_copy(update={"model_shape": shape})
    plan = plan_training(FACTS, request.hyperparameters)
    preflight = foreseen(request, FACTS, plan, [node(4)])
    assert preflight is not None
    passes = request.hyperparameters.batch_size if "micro_batch_size" in chosen else 1
    assert preflight.seconds == pytest.approx(100 * passes * 14 * DISPATCH_SECONDS, rel=0.05)


def test_a_measured_speed_has_setting_off_in_it() -> None:
    request = asked(max_steps=100)
    given = foreseen(request, FACTS, plan_training(FACTS, request.hyperparameters), [node(4)])
    assert given is not None
    assert timed(given, "cpu", 1e12, dispatches=1e6).seconds == pytest.approx(given.teraflops)


def test_an_mlp_three_times_as_wide_is_not_taken_for_a_fused_attention() -> None:
    def activations(mlp_width: int) -> int:
        linears = (
            LinearShape(inputs=512, outputs=512, count=4),
            LinearShape(inputs=512, outputs=mlp_width, count=2),
            LinearShape(inputs=mlp_width, outputs=512, count=1),
        )
        part = PartShape(
            modality="text",
            linears=linears,
            layers=1,
            width=512,
            query_width=512,
            key_width=512,
            mlp_width=mlp_width,
            gated=True,
        )
        shape = ModelShape(parts=(part,), dense_parameters=8, vocabulary=8)
        request = asked().model_copy(update={"model_shape": shape})
        given = foreseen(request, FACTS, plan_training(FACTS, request.hyperparameters), [node(4)])
        assert given is not None
        return {part.name: part.size_bytes for part in given.parts}["activations"]

    assert activations(1535) < activations(1536) < activations(1537)
