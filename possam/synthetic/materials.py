"""Procedural textures of the sixteen materials."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]
Texture = Callable[[np.random.Generator, Array, Array], Array]


def smooth_noise(rng: np.random.Generator, cells: int, size: int) -> Array:
    """Bilinear value noise with ``cells`` cells a side, unit variance at the grid points: (size,
    size).
    """
    grid = rng.standard_normal((cells + 1, cells + 1)).astype(np.float32)
    position = np.linspace(0, cells - 1e-3, size)
    left = position.astype(np.int64)
    part = (position - left).astype(np.float32)
    rows = grid[left] * (1 - part)[:, None] + grid[left + 1] * part[:, None]
    return rows[:, left] * (1 - part) + rows[:, left + 1] * part


def _rgb(red: float, green: float, blue: float) -> Array:
    return np.array([red, green, blue], np.float32)


def _noise(rng: np.random.Generator, like: Array, cells: int) -> Array:
    return smooth_noise(rng, cells, like.shape[0])[..., None]


def _grass(rng: np.random.Generator, x: Array, y: Array) -> Array:
    return _rgb(75, 160, 50) + 22 * _noise(rng, x, 64) * _rgb(0.6, 1, 0.4)


def _sand(rng: np.random.Generator, x: Array, y: Array) -> Array:
    return _rgb(222, 196, 142) + 8 * _noise(rng, x, 64) + 7 * _noise(rng, x, 6)


def _water(rng: np.random.Generator, x: Array, y: Array) -> Array:
    phase, scale = rng.uniform(0, 20), rng.uniform(0.85, 1.25)
    wave = np.sin((y + 3 * np.sin(x / 9 + phase) + phase) / (2.2 * scale))[..., None]
    return _rgb(35, 100, 165) + 25 * wave * _rgb(0.6, 0.8, 1)


def _sky(rng: np.random.Generator, x: Array, y: Array) -> Array:
    return _rgb(140, 200, 245) + 15 * _noise(rng, x, 3)


def _brick(rng: np.random.Generator, x: Array, y: Array) -> Array:
    phase, height = rng.uniform(0, 20), 7 * rng.uniform(0.9, 1.2)
    row = np.floor((y + phase) / height)
    joint = ((y + phase) % height < 1.4) | ((x + phase + row % 2 * height) % (2 * height) < 1.4)
    stone = _rgb(165, 72, 52) + 8 * _noise(rng, x, 20)
    return np.where(joint[..., None], _rgb(205, 195, 185), stone)


def _wood(rng: np.random.Generator, x: Array, y: Array) -> Array:
    phase, scale = rng.uniform(0, 20), rng.uniform(0.9, 1.2)
    grain = np.sin((x + 4 * smooth_noise(rng, 4, x.shape[0]) + phase) / (1.6 * scale))
    return _rgb(150, 100, 55) + 22 * grain[..., None]


def _snow(rng: np.random.Generator, x: Array, y: Array) -> Array:
    return _rgb(232, 238, 250) + 5 * _noise(rng, x, 10)


def _gravel(rng: np.random.Generator, x: Array, y: Array) -> Array:
    return _rgb(125, 122, 120) + 38 * _noise(rng, x, 46)


def _tiles(rng: np.random.Generator, x: Array, y: Array) -> Array:
    phase, side = rng.uniform(0, 20), 11 * rng.uniform(0.9, 1.2)
    joint = ((y + phase) % side < 1.7) | ((x + phase) % side < 1.7)
    return np.where(
        joint[..., None], _rgb(70, 100, 100), _rgb(190, 222, 215) + 3 * _noise(rng, x, 10)
    )


def _carpet(rng: np.random.Generator, x: Array, y: Array) -> Array:
    phase, scale = rng.uniform(0, 20), rng.uniform(0.9, 1.2)
    weave = np.sin((x + phase) / (1.5 * scale)) * np.sin(y / (1.5 * scale))
    return _rgb(125, 40, 85) + 35 * weave[..., None]


def _lava(rng: np.random.Generator, x: Array, y: Array) -> Array:
    glow = 1 / (1 + np.exp(-5 * smooth_noise(rng, 14, x.shape[0])))
    return _rgb(60, 15, 10) + glow[..., None] * _rgb(190, 90, 10)


def _mud(rng: np.random.Generator, x: Array, y: Array) -> Array:
    return _rgb(92, 68, 44) + 13 * _noise(rng, x, 8)


def _marble(rng: np.random.Generator, x: Array, y: Array) -> Array:
    phase = rng.uniform(0, 20)
    vein = np.sin((x + y) / 14 + 1.5 * smooth_noise(rng, 5, x.shape[0]) + phase)
    return _rgb(222, 214, 208) - 75 * np.exp(-7 * np.abs(vein))[..., None]


def _hay(rng: np.random.Generator, x: Array, y: Array) -> Array:
    phase, scale = rng.uniform(0, 20), rng.uniform(0.9, 1.2)
    straw = np.sin((x * 0.6 + y + 6 * smooth_noise(rng, 16, x.shape[0]) + phase) / (1.3 * scale))
    return _rgb(205, 168, 65) + 28 * straw[..., None]


def _moss(rng: np.random.Generator, x: Array, y: Array) -> Array:
    return _rgb(62, 84, 40) + 26 * _noise(rng, x, 16) * _rgb(0.7, 1, 0.3)


def _concrete(rng: np.random.Generator, x: Array, y: Array) -> Array:
    return _rgb(168, 168, 168) + 6 * _noise(rng, x, 40) + 6 * _noise(rng, x, 4)


TEXTURES: dict[str, Texture] = {
    "grass": _grass,
    "sand": _sand,
    "water": _water,
    "sky": _sky,
    "brick": _brick,
    "wood": _wood,
    "snow": _snow,
    "gravel": _gravel,
    "tiles": _tiles,
    "carpet": _carpet,
    "lava": _lava,
    "mud": _mud,
    "marble": _marble,
    "hay": _hay,
    "moss": _moss,
    "concrete": _concrete,
}
"""Texture of each material: ``(rng, x, y)`` with pixel coordinates (H, W) -> RGB (H, W, 3), about 0
to 255.
"""
