"""The CPU's colour map and noises compared with exact arithmetic and the NumPy fields."""

from collections.abc import Callable

import numpy as np
import pytest

from penstock.pipeline.augment.colour import LUMA
from penstock.pipeline.augment.kernel import _cosine, _log_uniform, add_noise, add_salt_pepper, map_colours, mean_colour
from penstock.pipeline.augment.noise import MIX, SECOND, UINT32, gaussian_field, hashed_field, hashed_lines, noise_keys

SIZES = [1, 2, 3, 7, 32, 33, 65, 224]
NEAR_A_TIE = 2e-3  # in grey levels: where float32 may round to the other side


def random_image(size: int) -> np.ndarray:
    return np.random.default_rng(size).integers(0, 256, size * size * 3, dtype=np.uint8)


def output(kernel: Callable[..., None], image: np.ndarray, *arguments: object) -> np.ndarray:
    """What a kernel makes of (3 n,) uint8, as integers."""
    out = np.full(len(image) + 8, 77, np.uint8)  # what lies behind must not be written
    kernel(image, *arguments, out[:-8])
    assert (out[-8:] == 77).all()
    return out[:-8].astype(int)


def assert_rounded(found: np.ndarray, exact: np.ndarray, near: float = NEAR_A_TIE) -> None:
    """That grey levels are the exact values, clipped and rounded; near a half, either of its neighbours."""
    exact = np.clip(exact.ravel(), 0, 255)
    wrong = found != np.floor(exact + 0.5)
    assert (np.abs(exact - np.floor(exact) - 0.5)[wrong] < near).all()
    assert (np.abs(found - exact)[wrong] <= 0.5 + near).all()
    assert wrong.mean() < 1e-3 or wrong.sum() <= 1


def lines(size: int, channels: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(1, 2) keys, and the words of the rows and columns."""
    keys = noise_keys(np.random.default_rng([size, seed]).random((1, 2)))
    return keys, hashed_lines(keys[:, 0], size)[0], hashed_lines(keys[:, 1], channels * size)[0]


# --- colours


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0])
def test_colours_are_the_matrix_times_the_pixel(size: int, spread: float) -> None:
    """Around the identity, and far from it, where most values are clipped."""
    rng, image = np.random.default_rng(int(10 * spread)), random_image(size)
    for _ in range(5):
        matrix = (np.eye(3) + spread * rng.normal(size=(3, 3))).astype(np.float32)
        offset = (100 * spread * rng.normal(size=3)).astype(np.float32)
        found = output(map_colours, image, matrix.ravel(), offset)
        assert_rounded(found, image.reshape(-1, 3) @ matrix.astype(float).T + offset)


def test_colours_at_the_ends_and_halves() -> None:
    """Saturated however far away; a half is rounded up, as DALI's `coord_transform` and `cast` round it on the CPU."""
    image, eye = np.repeat(np.arange(256, dtype=np.uint8), 3), np.eye(3, dtype=np.float32).ravel()
    for offset in ([1e30, -1e30, 0], [np.inf, -np.inf, 0.25], [255, -255, -0.25]):
        found = output(map_colours, image, eye, np.array(offset, np.float32)).reshape(-1, 3)
        assert (found == np.stack([np.full(256, 255), np.zeros(256), np.arange(256)], 1)).all()
    halved = output(map_colours, image, eye / np.float32(2), np.zeros(3, np.float32))
    assert np.array_equal(halved, (image.astype(int) + 1) // 2)


@pytest.mark.parametrize("size", [*SIZES, 300])  # 300² pixels are summed in two parts
def test_the_mean_colour_is_exact(size: int) -> None:
    for image in (random_image(size), np.full(size * size * 3, 255, np.uint8)):
        assert np.array_equal(mean_colour(image), image.reshape(-1, 3).sum(axis=0, dtype=np.int64) / size**2)


def test_gray_is_pillows_luma() -> None:
    image, gray = random_image(65), np.tile(LUMA, (3, 1)).astype(np.float32)
    found = output(map_colours, image, gray.ravel(), np.zeros(3, np.float32))
    assert_rounded(found, np.repeat(image.reshape(-1, 3) @ LUMA, 3))


# --- noise


@pytest.mark.parametrize("std", [0.0, 0.3, 25.0, 255.0])
@pytest.mark.parametrize("size", SIZES)
def test_noise_is_the_plans_field(size: int, std: float) -> None:
    (keys, rows, columns), image = lines(size, 3), random_image(size)
    found = output(add_noise, image, rows, columns, np.float32(std))
    assert_rounded(found, image + np.float32(std) * gaussian_field(keys, size).ravel().astype(float))


def test_logarithm_and_cosine() -> None:
    """Within 1.5 and 2 times 1e-7 (of a logarithm beyond 1, of itself); random words, and those around powers of two
    and √½ of them, where the logarithm's polynomial starts again."""
    ends = [np.rint(2**power * root) + np.arange(-20, 20) for power in range(12, 33) for root in (1, 0.5**0.5)]
    words = np.concatenate([np.random.default_rng(0).integers(0, UINT32, 10_000), np.arange(100), *ends])
    words = (words.astype(np.int64) % UINT32).astype(np.uint32)
    logarithms, cosines = (np.array([f(word) for word in words]) for f in (_log_uniform, _cosine))
    exact = np.log((words + 0.5) / UINT32)
    assert (np.abs(logarithms - exact) / np.maximum(1, -exact)).max() < 1.5e-7
    assert np.abs(cosines - np.cos(2 * np.pi / UINT32 * words)).max() < 2e-7


def unmixed(words: np.ndarray) -> np.ndarray:
    """What `hashed_field` mixes to these words: its multiplications are by odd numbers, its shift is half a word."""
    first, second = (np.uint32(pow(multiplier, -1, UINT32)) for multiplier in MIX)
    words = words * second
    return (words ^ (words >> np.uint32(16))) * first


def test_noise_of_the_rarest_words() -> None:
    """The largest radii and the smallest, and angles around each quarter of a turn."""
    near = np.arange(-1500, 1500)
    angles = np.concatenate([(near + quarter * 2**30) * pow(SECOND, -1, UINT32) for quarter in range(4)])
    powers = np.concatenate([2**power + near for power in range(33)])
    words = (np.concatenate([angles, powers]) % UINT32).astype(np.uint32)
    columns, image = unmixed(words), np.full(len(words), 128, np.uint8)
    field = np.sqrt(-2 * np.log((words + 0.5) / UINT32)) * np.cos(2 * np.pi / UINT32 * (words * np.uint32(SECOND)))
    assert field.max() > 5
    for std in (1.0, 18.0, 200.0):
        found = output(add_noise, image, np.zeros(1, np.uint32), columns, np.float32(std))
        assert_rounded(found, 128 + std * field, near=3e-4 * std)  # float32 has few numbers close below 1, whose radii
        # are the smallest


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("low", [0, 1, 2**28, 2**31 - 1])
def test_salt_and_pepper_to_the_bit(size: int, low: int) -> None:
    (keys, rows, columns), image = lines(size, 1), random_image(size)
    field, expected = hashed_field(keys, size, size).ravel(), image.reshape(-1, 3).copy()
    expected[field < low], expected[field > UINT32 - 1 - low] = 0, 255
    found = output(add_salt_pepper, image, rows, columns, np.uint32(low))
    assert np.array_equal(found, expected.ravel())


def test_salt_and_pepper_at_their_thresholds() -> None:
    low = 1000
    words = np.array([0, low - 1, low, UINT32 - 1 - low, UINT32 - low, UINT32 - 1], np.uint32)
    arguments = np.zeros(1, np.uint32), unmixed(words), np.uint32(low)
    found = output(add_salt_pepper, np.full(18, 9, np.uint8), *arguments)
    assert found[::3].tolist() == [0, 0, 9, 9, 255, 255]


# --- a pixel's place


@pytest.mark.parametrize("skipped", [1, 2, 5, 8, 17, 31])
def test_a_pixel_is_the_same_wherever_it_lies(skipped: int) -> None:
    """In a vector of LLVM's or among those left over: to the bit."""
    image, rng = random_image(40), np.random.default_rng(3)
    colours = rng.normal(size=9).astype(np.float32), np.array([1.1, -7.3, 20.7], np.float32)
    whole = output(map_colours, image, *colours)
    assert np.array_equal(output(map_colours, image[3 * skipped :], *colours), whole[3 * skipped :])
    _, rows, columns = lines(40, 3)
    noisy = output(add_noise, image, rows, columns, np.float32(20)).reshape(40, 120)
    part = np.ascontiguousarray(image.reshape(40, 120)[skipped:, skipped:]).ravel()
    found = output(add_noise, part, rows[skipped:], columns[skipped:], np.float32(20))
    assert np.array_equal(found, noisy[skipped:, skipped:].ravel())
