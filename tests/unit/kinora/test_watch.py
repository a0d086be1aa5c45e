"""What a person sees of a job that is watched."""

from rich.console import Console

from kinora.watch import JobProgress, picture
from schemas.envelope import versioned_type
from schemas.events import Event, job
from tests.stories import admitted, evaluated, finished, progressed, taken


def watched(*events: Event) -> JobProgress:
    progress = JobProgress()
    for position, event in enumerate(events, 1):
        envelope = {"type": versioned_type(type(event)), "data": event.model_dump(mode="json")}
        progress = progress.after_frame({"type": "event", "position": position, "event": envelope})
    return progress


def seen(progress: JobProgress) -> str:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(picture(progress, "shapes"))
    return captured.get()


def test_every_figure_is_seen_as_soon_as_it_is_measured() -> None:
    begun = [*admitted(), *taken(1), evaluated(1, 0, "before", 0.0), progressed(1, 1, 12)]
    assert "held-out token accuracy: 50% before\n" in seen(watched(*begun)).replace(" \n", "\n")
    text = seen(watched(*begun, *finished(1)))
    assert "held-out exact match: 0% before, 75% after" in text
    assert "held-out token accuracy: 50% before, 88% after" in text
    assert "held-out loss: 1.5000 before, 1.5000 after" in text


def test_the_held_out_loss_is_told_on_the_way() -> None:
    text = seen(watched(*admitted(), *taken(1), progressed(1, 1, 6), evaluated(1, 6, "during", 0.5)))
    assert "held-out loss 1.5000 at step 6" in text


def test_an_early_end_is_seen_to_the_last() -> None:
    early = job.TrainingFinished(
        attempt=1, steps=8, loss_first=2, loss_last=1, seconds=3, stopped_early=True, adapter_step=4
    )
    ended = watched(*admitted(), *taken(1), progressed(1, 1, 8), early)
    assert "storing the adapter of step 4; the training ended early" in seen(ended)
    *_, succeeded = finished(1)
    whole = watched(*admitted(), *taken(1), progressed(1, 1, 8), early, succeeded)
    assert "every artifact is stored: the adapter of step 4; the training ended early" in seen(whole)
