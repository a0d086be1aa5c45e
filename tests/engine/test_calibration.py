"""The first steps correct the forecast: by the share that it was wrong of, never below what was held."""

from hypothesis import given
from hypothesis import strategies as st

from qlora_engine.data.batches import Cursor, Step
from qlora_engine.training.calibration import CORRECTION, WARM, Calibration, remembering
from schemas.footprint import MemoryPart, Preflight
from schemas.preflight import timed

STEP = Step((), Cursor())


def forecast(activations: int, frames: int = 0, teraflops: float = 1.0) -> Preflight:
    parts = (
        MemoryPart(name="base weights", size_bytes=100),
        MemoryPart(name="activations", size_bytes=activations),
        MemoryPart(name="frames", size_bytes=frames),
    )
    return Preflight(
        parts=parts,
        peak_bytes=sum(part.size_bytes for part in parts),
        host_bytes=0,
        largest_pass_tokens=1,
        tokens=10,
        steps=10,
        teraflops=teraflops,
    )


@given(
    whole=st.integers(1, 10_000),
    part=st.floats(0.01, 1),
    frames=st.integers(0, 500),
    held=st.integers(-100, 20_000),
    rose=st.booleans(),
)
def test_what_was_wrong_of_a_step_is_wrong_of_all_by_the_same_share(
    whole: int, part: float, frames: int, held: int, rose: bool
) -> None:
    expected, of_step = forecast(whole, frames), forecast(max(1, int(whole * part)))
    corrected = remembering(expected, of_step, held, rose=rose)
    assert corrected.peak_bytes == sum(each.size_bytes for each in corrected.parts)
    if held <= 0 or (not rose and held >= of_step.peak_bytes):
        assert corrected == expected
        return
    assert corrected.peak_bytes - frames >= held
    share = held / of_step.peak_bytes
    assert abs(corrected.peak_bytes - frames - max(held, share * (expected.peak_bytes - frames))) <= 0.5
    assert (corrected.peak_bytes > expected.peak_bytes) == (corrected.parts[-1].size_bytes > 0)


def calibration(*, memory: bool = True, baseline: int = 50) -> Calibration:
    return Calibration(
        forecast(300, teraflops=10.0),
        lambda _: forecast(100),
        lambda given, flops: timed(given, "cpu", flops),
        baseline,
        memory=memory,
    )


def test_the_first_step_is_believed_and_a_few_more_are_believed_more() -> None:
    asked = calibration()
    asked.begin(200)
    first = asked.after(STEP, 5.0, 50 + 400)  # twice what was predicted, with a slow start
    assert first is not None
    assert (first.peak_bytes, first.seconds) == (800, 50.0)
    assert first.parts[-1].name == CORRECTION
    told = []
    for _ in range(2, WARM + 3):
        asked.begin(450)
        told.append(asked.after(STEP, 1.0, 450))
    assert [each is not None for each in told] == [number == WARM for number in range(2, WARM + 3)]
    assert told[WARM - 2] is not None
    assert (told[WARM - 2].peak_bytes, told[WARM - 2].seconds) == (800, 10.0)


def test_an_adapter_that_will_grow_says_nothing_of_memory() -> None:
    asked = calibration(memory=False)
    asked.begin(0)
    found = asked.after(STEP, 1.0, 9999)
    assert found is not None
    assert (found.peak_bytes, found.seconds) == (400, 10.0)
