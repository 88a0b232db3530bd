"""Procedural textures of the sixteen materials."""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]


def smooth_noise(rng: np.random.Generator, cells: int, size: int) -> Array:
    """Bilinear value noise (size, size), ``cells`` cells per side, unit variance at grid points."""
    grid = rng.standard_normal((cells + 1, cells + 1)).astype(np.float32)
    position = np.linspace(0, cells - 1e-3, size)
    left = position.astype(np.int64)
    part = (position - left).astype(np.float32)
    rows = grid[left] * (1 - part)[:, None] + grid[left + 1] * part[:, None]
    return rows[:, left] * (1 - part) + rows[:, left + 1] * part


def _rgb(red: float, green: float, blue: float) -> Array:
    return np.array([red, green, blue], np.float32)


def texture(material: str, rng: np.random.Generator, x: Array, y: Array) -> Array:
    """Texture of a material at pixel coordinates (H, W): RGB float (H, W, 3), about 0 to 255."""

    def noise(cells: int) -> Array:
        return smooth_noise(rng, cells, x.shape[0])[..., None]

    match material:
        case "grass":
            return _rgb(75, 160, 50) + 22 * noise(64) * _rgb(0.6, 1, 0.4)
        case "sand":
            return _rgb(222, 196, 142) + 8 * noise(64) + 7 * noise(6)
        case "water":
            phase, scale = rng.uniform(0, 20), rng.uniform(0.85, 1.25)
            wave = np.sin((y + 3 * np.sin(x / 9 + phase) + phase) / (2.2 * scale))[..., None]
            return _rgb(35, 100, 165) + 25 * wave * _rgb(0.6, 0.8, 1)
        case "sky":
            return _rgb(140, 200, 245) + 15 * noise(3)
        case "brick":
            phase, height = rng.uniform(0, 20), 7 * rng.uniform(0.9, 1.2)
            shifted = x + phase + np.floor((y + phase) / height) % 2 * height
            joint = ((y + phase) % height < 1.4) | (shifted % (2 * height) < 1.4)
            stone = _rgb(165, 72, 52) + 8 * noise(20)
            return np.where(joint[..., None], _rgb(205, 195, 185), stone)
        case "wood":
            phase, scale = rng.uniform(0, 20), rng.uniform(0.9, 1.2)
            grain = np.sin((x[..., None] + 4 * noise(4) + phase) / (1.6 * scale))
            return _rgb(150, 100, 55) + 22 * grain
        case "snow":
            return _rgb(232, 238, 250) + 5 * noise(10)
        case "gravel":
            return _rgb(125, 122, 120) + 38 * noise(46)
        case "tiles":
            phase, side = rng.uniform(0, 20), 11 * rng.uniform(0.9, 1.2)
            joint = ((y + phase) % side < 1.7) | ((x + phase) % side < 1.7)
            tile = _rgb(190, 222, 215) + 3 * noise(10)
            return np.where(joint[..., None], _rgb(70, 100, 100), tile)
        case "carpet":
            phase, scale = rng.uniform(0, 20), rng.uniform(0.9, 1.2)
            weave = np.sin((x + phase) / (1.5 * scale)) * np.sin(y / (1.5 * scale))
            return _rgb(125, 40, 85) + 35 * weave[..., None]
        case "lava":
            return _rgb(60, 15, 10) + 1 / (1 + np.exp(-5 * noise(14))) * _rgb(190, 90, 10)
        case "mud":
            return _rgb(92, 68, 44) + 13 * noise(8)
        case "marble":
            phase = rng.uniform(0, 20)
            vein = np.sin((x + y)[..., None] / 14 + 1.5 * noise(5) + phase)
            return _rgb(222, 214, 208) - 75 * np.exp(-7 * np.abs(vein))
        case "hay":
            phase, scale = rng.uniform(0, 20), rng.uniform(0.9, 1.2)
            straw = np.sin(((x * 0.6 + y)[..., None] + 6 * noise(16) + phase) / (1.3 * scale))
            return _rgb(205, 168, 65) + 28 * straw
        case "moss":
            return _rgb(62, 84, 40) + 26 * noise(16) * _rgb(0.7, 1, 0.3)
        case "concrete":
            return _rgb(168, 168, 168) + 6 * noise(40) + 6 * noise(4)
    raise ValueError(f"unknown material {material!r}")
