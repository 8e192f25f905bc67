"""A digest of a set of samples: `metrics.jsonl` has one for each step, and `train.py audit` computes it again."""

import numpy as np

INT63 = 2**63 - 1


def sample_digest(sample_ids: np.ndarray) -> int:
    """The sum of the samples' hashed ids, in 63 bits. A sum does not depend on the order or on the ranks.

    `sample_ids`: (N,) int64. The mixing is SplitMix64's (Steele et al. 2014).
    """
    with np.errstate(over="ignore"):
        x = (sample_ids.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return int((x ^ (x >> np.uint64(31))).sum()) & INT63
