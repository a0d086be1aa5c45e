"""The loss curves as a picture."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kinora.client import Json

_COLOURS = (("#e3c9a8", "#b8751a", "#7a4a08"), ("#9db4d6", "#1f4e9c", "#0d2a5c"))
"""Of each training: as it is, smoothed, held out."""


def smoothed(values: list[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average with bias correction (Kingma & Ba 2015, §3)."""
    result, mean = [], 0.0
    for count, value in enumerate(values, start=1):
        mean = weight * mean + (1 - weight) * value
        result.append(mean / (1 - weight**count))
    return result


def save_loss_curves(trainings: Mapping[str, Json], title: str, file: Path) -> None:
    """Write the training loss per step, and the held-out loss where it was measured, as a PNG.

    Args:
        trainings: the API's metrics by what each training is called.
    """
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for (name, metrics), (raw, strong, marked) in zip(trainings.items(), _COLOURS, strict=False):
        points = metrics["points"]
        steps, losses = [point["step"] for point in points], [point["loss"] for point in points]
        axes.plot(steps, losses, color=raw, linewidth=1)
        axes.plot(steps, smoothed(losses), color=strong, linewidth=2, label=f"{name}: training, smoothed")
        held_out = [
            (point["step"], point["evaluation"]["loss"])
            for point in metrics.get("evaluations") or ()
            if point["evaluation"]["loss"] is not None
        ]
        if held_out:
            columns = zip(*held_out, strict=True)
            axes.plot(*columns, color=marked, marker="o", linestyle="", label=f"{name}: held-out clips")
    axes.set(title=title, xlabel="optimizer step", ylabel="cross-entropy per response token (nats)")
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(file)
