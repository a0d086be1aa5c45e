"""High dynamic range brought to what models were trained on: BT.709 pictures of 8 bits. Free of torch.

Constants: ITU-R BT.2100 (the PQ and HLG curves), BT.2087 (primaries), BT.2408 (white paper is 203 cd/m²),
BT.1886 (a screen's gamma is 2.4). What is brighter than three quarters of white is compressed, not cut off.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

PQ, HLG = 16, 18
"""Transfer characteristics by their numbers in ITU-T H.273."""
WHITE = 203.0
KNEE = 0.75
BT2020_TO_BT709 = (
    (1.660491, -0.587641, -0.072850),
    (-0.124550, 1.132900, -0.008349),
    (-0.018151, -0.100579, 1.118730),
)


def to_standard_range(picture: NDArray[np.uint16], transfer: int) -> NDArray[np.uint8]:
    """RGB of 16 bits, BT.2020 primaries, as RGB of 8 bits with BT.709 primaries."""
    light = _curve(transfer)[picture]
    if transfer == HLG:  # a screen of 1,000 cd/m² brightens the scene: display = 1000 Y^0.2 scene
        luma = 0.2627 * light[..., 0] + 0.6780 * light[..., 1] + 0.0593 * light[..., 2]
        light *= (1000 / WHITE) * np.maximum(luma, 1e-6)[..., None] ** np.float32(0.2)
    red, green, blue = light[..., 0], light[..., 1], light[..., 2]
    shown = np.stack([a * red + b * green + c * blue for a, b, c in BT2020_TO_BT709], axis=-1)
    np.clip(shown, 0, None, out=shown)
    bright = KNEE + (1 - KNEE) * (1 - np.exp(-(np.maximum(shown, KNEE) - KNEE) / (1 - KNEE)))
    shown = np.where(shown > KNEE, bright, shown)
    return np.asarray(np.rint(255 * shown ** np.float32(1 / 2.4)), np.uint8)


@lru_cache(maxsize=2)
def _curve(transfer: int) -> NDArray[np.float32]:
    """Light per code value of 16 bits: 1 is white paper for PQ, the scene's peak for HLG."""
    code = np.arange(65536) / 65535
    if transfer == HLG:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12).astype(np.float32)
    power = code ** (1 / 78.84375)
    light = np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)
    return (10_000 / WHITE * light ** (1 / 0.1593017578125)).astype(np.float32)
