"""The loss curve as a picture."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kinora.client import Json

_RAW, _SMOOTH, _HELD_OUT = "#9db4d6", "#1f4e9c", "#c2571a"


def smoothed(values: list[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average with bias correction (Kingma & Ba 2015, §3)."""
    result, mean = [], 0.0
    for count, value in enumerate(values, start=1):
        mean = weight * mean + (1 - weight) * value
        result.append(mean / (1 - weight**count))
    return result


def save_loss_curve(metrics: Json, title: str, file: Path) -> None:
    """Write the training loss per step, and the held-out loss where it was measured, as a PNG."""
    points = metrics["points"]
    steps, losses = [point["step"] for point in points], [point["loss"] for point in points]
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(steps, losses, color=_RAW, linewidth=1, label="training, each step")
    axes.plot(steps, smoothed(losses), color=_SMOOTH, linewidth=2, label="training, smoothed")
    held_out = [
        (point["step"], point["evaluation"]["loss"])
        for point in metrics.get("evaluations") or ()
        if point["evaluation"]["loss"] is not None
    ]
    if held_out:
        axes.plot(
            *zip(*held_out, strict=True), color=_HELD_OUT, marker="o", linestyle="", label="held-out clips"
        )
    axes.set(title=title, xlabel="optimizer step", ylabel="cross-entropy per response token (nats)")
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(file)
