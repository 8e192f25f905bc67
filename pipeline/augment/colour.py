"""Colour: brightness, contrast, saturation, hue, PCA lighting and grayscale, as one affine map of RGB per image.

Without clipping in between, torchvision's brightness, contrast and saturation and a rotation of hue about the gray axis
commute. So their order, which torchvision draws at random, does not matter, and one pass over the pixels does them all.
"""

import numpy as np

from penstock.pipeline.augment.config import AugmentConfig
from penstock.pipeline.augment.params import AugmentParams

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R 601, as Pillow's "L" and torchvision's grayscale
# Rows: luma and the two chroma axes of YIQ (FCC 1953); hue turns the chroma axes. Gray has no chroma.
_YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
# Principal components of ImageNet's RGB values, 0 to 1 (Krizhevsky et al. 2012; figures of fb.resnet.torch).
_EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
_EIGENVECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


def colour_jitter(draws: np.ndarray, config: AugmentConfig) -> AugmentParams:
    """Factors for brightness, contrast and saturation, and the hue shift in degrees: (n,) float32 each.

    Args:
        draws: (n, 4) uniform in [0, 1).
    """

    def factor(column: int, strength: float) -> np.ndarray:
        low = max(0.0, 1.0 - strength)
        return (low + draws[:, column] * (1.0 + strength - low)).astype(np.float32)

    hue = ((2 * draws[:, 3] - 1) * config.hue * 360).astype(np.float32)
    return {
        "brightness": factor(0, config.brightness),
        "contrast": factor(1, config.contrast),
        "saturation": factor(2, config.saturation),
        "hue": hue,
    }


def lighting(draws: np.ndarray, std: float) -> np.ndarray:
    """The offsets of PCA lighting for R, G and B, in grey levels: (n, 3) float32 (Krizhevsky et al. 2012, section 4.1).

    Args:
        draws: (n, 6) uniform in [0, 1): three normal draws by Box and Muller.
    """
    radius = np.sqrt(-2 * np.log1p(-draws[:, :3]))
    alphas = std * radius * np.cos(2 * np.pi * draws[:, 3:])
    added: np.ndarray = (255 * (alphas * _EIGENVALUES) @ _EIGENVECTORS.T).astype(np.float32)
    return added


def colour_map(
    *, brightness: np.ndarray, contrast: np.ndarray, saturation: np.ndarray, hue: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Colour jitter as pixel → matrix · pixel + mean_gain × (mean gray of the image).

    Args:
        brightness, contrast, saturation: (n,) factors. hue: (n,) degrees.

    Returns:
        matrix: (n, 3, 3); mean_gain: (n,).
    """
    angle = np.deg2rad(hue)
    chroma = np.zeros((len(angle), 3, 3))
    chroma[:, 0, 0] = 1
    chroma[:, 1, 1] = chroma[:, 2, 2] = saturation * np.cos(angle)
    chroma[:, 1, 2], chroma[:, 2, 1] = saturation * np.sin(angle), -saturation * np.sin(angle)
    matrix = (brightness * contrast)[:, None, None] * (np.linalg.inv(_YIQ) @ chroma @ _YIQ)
    return matrix, brightness * (1 - contrast)


def to_gray(matrix: np.ndarray, offset: np.ndarray, where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The map, followed by grayscale for the samples with `where` true: (n, 3, 3), (n, 3)."""
    gray = np.tile(LUMA, (3, 1))
    return np.where(where[:, None, None], gray @ matrix, matrix), np.where(where[:, None], offset @ gray.T, offset)
