"""A keyed pseudo-random permutation of 0…n-1 in constant memory: only NumPy, no state, no array of length n.

The packer shuffles a dataset with it once; the plan shuffles every epoch with it.
"""

import zlib

import numpy as np

_U64 = np.uint64
_ROUNDS = 8  # with 6, permutations of 5 to 16 elements are measurably not uniform


def _mix(x: np.ndarray) -> np.ndarray:
    """(n,) uint64 → (n,) uint64, a bijection that spreads every bit (Stafford's mix 13, used by SplitMix64)."""
    x = (x ^ (x >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> _U64(27))) * _U64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> _U64(31))
    return mixed


def philox_key(seed: int, epoch: int, stream: str) -> np.ndarray:
    """The (2,) uint64 Philox key of one named stream of draws. Streams are independent of each other."""
    return np.array([seed & (2**64 - 1), (epoch & (2**32 - 1)) << 32 | zlib.crc32(stream.encode())], dtype=_U64)


def permute(index: np.ndarray, n: int, key: np.ndarray) -> np.ndarray:
    """Map each index by a keyed pseudo-random permutation of 0…n-1, without computing the whole permutation.

    It is a Feistel network over the smallest even-bit domain that contains n, applied until the result is below n
    (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). The domain is smaller than 4 n, so on average it
    is applied fewer than four times.

    Args:
        index: (m,) integers in 0…n-1.
        n: length of the permuted range, 1 ≤ n < 2^62.
        key: (2,) uint64.

    Returns:
        (m,) int64 in 0…n-1; distinct for distinct indices.
    """
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    shift, mask = _U64(half), _U64((1 << half) - 1)
    with np.errstate(over="ignore"):
        round_keys = _mix(_mix(key[:1] + np.arange(1, _ROUNDS + 1, dtype=_U64) * _U64(0x9E3779B97F4A7C15)) ^ key[1])
        out = index.astype(_U64)
        todo = np.arange(len(out))
        while len(todo):
            x = out[todo]
            left, right = x >> shift, x & mask
            for round_key in round_keys:
                left, right = right, left ^ (_mix(right ^ round_key) & mask)
            x = left << shift | right
            out[todo] = x
            todo = todo[x >= _U64(n)]
    return out.astype(np.int64)
