"""What a checkpoint's preprocessor files say about pixels, where we need them: in place of a processor."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qlora_engine.errors import ModelRefused

VIDEO_FILE = "video_preprocessor_config.json"
FILES = (VIDEO_FILE, "preprocessor_config.json")
"""The first that is there counts, as in transformers."""
PROCESSOR_FILE = "processor_config.json"

Colours = tuple[float, float, float]


def read_preprocessor(folder: Path) -> dict[str, Any]:
    """The description of the video processor.

    Raises:
        ModelRefused: no file has one (code ``missing_processor``), or it is not JSON (``bad_config``).
    """
    for name in FILES:
        described = _read(folder / name)
        if described:
            return described
    nested = _read(folder / PROCESSOR_FILE).get("video_processor")
    if not isinstance(nested, dict):
        raise ModelRefused(
            f"{folder.name} has neither {FILES[0]} nor {FILES[1]}, so nobody knows which pixels the model was"
            f" trained on; upload the checkpoint's processor files ({PROCESSOR_FILE} of newer ones will do)",
            code="missing_processor",
        )
    return nested


def _read(file: Path) -> dict[str, Any]:
    try:
        described = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise ModelRefused(
            f"{file.name} is not JSON ({error}); upload it again", code="bad_config"
        ) from error
    if not isinstance(described, dict):
        raise ModelRefused(f"{file.name} must hold a JSON object; upload it again", code="bad_config")
    return described


def colours(described: dict[str, Any], field: str, usual: Sequence[float] = (0.5, 0.5, 0.5)) -> Colours:
    """Mean or standard deviation per colour.

    Raises:
        ModelRefused: code ``bad_config``.
    """
    values = described.get(field) or usual
    try:
        red, green, blue = (float(value) for value in values)
    except (TypeError, ValueError):
        red = green = blue = math.nan
    if not all(math.isfinite(value) for value in (red, green, blue)) or (
        field == "image_std" and min(red, green, blue) <= 0
    ):
        raise ModelRefused(
            f"preprocessor_config.json has {field} {values!r}; it must be three numbers, one per colour",
            code="bad_config",
        )
    return red, green, blue


def pixel_limits(described: dict[str, Any], least: int, most: int) -> tuple[int, int]:
    """The least and the most pixels of ``size``, or of the older fields beside it.

    Raises:
        ModelRefused: they contradict one another (code ``bad_config``).
    """
    size = described.get("size")
    given = dict(size) if isinstance(size, dict) else {}
    for old, new in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
        if described.get(old) is not None:
            given[new] = described[old]
    low, high = whole_number(given, "shortest_edge", least), whole_number(given, "longest_edge", most)
    if low > high:
        raise ModelRefused(
            f"the preprocessor's size has shortest_edge {low} above longest_edge {high}; both are numbers of"
            " pixels, the smaller one first",
            code="bad_config",
        )
    return low, high


def whole_number(described: dict[str, Any], field: str, usual: int) -> int:
    """A positive whole number.

    Raises:
        ModelRefused: code ``bad_config``.
    """
    value = described.get(field)
    if value is None:
        return usual
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelRefused(
            f"the preprocessor's {field} is {value!r}; it must be a whole number above 0", code="bad_config"
        )
    return value
