"""The plan is a permutation with uniform draws, and is the same at other world sizes."""

import time
import tracemalloc
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from penstock.pipeline.augment import AugmentConfig
from penstock.pipeline.augment.params import StepArray
from penstock.pipeline.config import DataConfig
from penstock.pipeline.feed import Feed
from penstock.pipeline.permutation import permute, philox_key
from penstock.pipeline.plan import ORDERS, EpochPlan, Order, Span, eval_spans, runs, train_spans
from penstock.shards.format import SAMPLE_DTYPE, Split


def chi_square(counts: np.ndarray) -> float:
    """Pearson's statistic against equal cells, in standard deviations from its mean."""
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    return float(((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom)


def whole(plan: EpochPlan) -> np.ndarray:
    return plan.sample_ids(0, plan.num_samples)


# --- the permutation


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 16, 17, 64, 1000, 65536, 65537])
def test_permute_is_a_bijection_however_it_is_asked(n: int) -> None:
    key = philox_key(7, 3, "order")
    full = permute(np.arange(n), n, key)
    assert full.dtype == np.int64
    assert np.array_equal(np.sort(full), np.arange(n))
    chunks = [permute(np.arange(a, min(a + 777, n)), n, key) for a in range(0, n, 777)]
    assert np.array_equal(np.concatenate(chunks), full)
    some = np.array([n - 1, 0, n // 2, 0])
    assert np.array_equal(permute(some, n, key), full[some])
    assert permute(np.array([], np.int64), n, key).shape == (0,)


@pytest.mark.parametrize(("n", "trials"), [(2, 2000), (3, 2000), (5, 8000), (12, 2000)])
def test_permute_is_uniform_over_keys(n: int, trials: int) -> None:
    """Each element lands everywhere equally often; so does each consecutive pair (n (n - 1) cells)."""
    images = np.stack([permute(np.arange(n), n, philox_key(seed, seed % 5, "order")) for seed in range(trials)])
    for element in range(n):
        assert abs(chi_square(np.bincount(images[:, element], minlength=n))) < 5
    pairs = np.bincount(images[:, 0] * n + images[:, 1], minlength=n * n).reshape(n, n)
    assert not pairs.diagonal().any()
    assert abs(chi_square(pairs[~np.eye(n, dtype=bool)])) < 5


def test_permute_leaves_no_trace_of_the_order() -> None:
    """Neighbours end at unrelated places: successive differences are spread like those of NumPy's shuffle."""
    n = 20_000
    full = whole(EpochPlan(num_samples=n, seed=1))
    assert abs(np.corrcoef(full[:-1], full[1:])[0, 1]) < 4 / np.sqrt(n)
    assert abs(np.corrcoef(np.arange(n), full)[0, 1]) < 4 / np.sqrt(n)
    steps = np.diff(full) % n
    assert abs(chi_square(np.bincount(steps * 64 // n, minlength=64))) < 5
    assert np.count_nonzero(steps == 1) < 8  # 1 is expected
    fixed = [np.count_nonzero(whole(EpochPlan(num_samples=1000, seed=s)) == np.arange(1000)) for s in range(300)]
    assert 0.75 < np.mean(fixed) < 1.25  # 1 is expected, standard error 0.06


@pytest.mark.parametrize("order", ["global", "block"])
def test_each_epoch_and_seed_has_its_own_order(order: Order) -> None:
    n = 4096
    orders = {
        (seed, epoch): whole(
            EpochPlan(num_samples=n, seed=seed, epoch=epoch, order=order, block_size=64, window_blocks=4)
        )
        for seed in (0, 1, 2**64 - 1, -2)
        for epoch in (0, 1, 90)
    }
    keys = list(orders)
    for i, a in enumerate(keys):
        for b in keys[:i]:
            assert np.count_nonzero(orders[a] == orders[b]) < 20, (a, b)  # 1 is expected
    again = EpochPlan(num_samples=n, seed=1, epoch=90, order=order, block_size=64, window_blocks=4)
    assert np.array_equal(whole(again), orders[1, 90])


# --- the orders


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("n", "block", "window"), [(1, 1, 1), (1000, 7, 3), (1000, 10, 10), (97, 100, 2), (1001, 1, 1), (640, 64, 5)]
)
def test_every_order_has_each_sample_once_and_in_any_pieces(order: Order, n: int, block: int, window: int) -> None:
    plan = EpochPlan(num_samples=n, seed=3, epoch=2, order=order, block_size=block, window_blocks=window)
    full = whole(plan)
    assert np.array_equal(np.sort(full), np.arange(n))
    assert np.array_equal(np.concatenate([plan.sample_ids(a, min(13, n - a)) for a in range(0, n, 13)]), full)


def test_sequential_is_the_stored_order() -> None:
    assert np.array_equal(EpochPlan(num_samples=10, order="sequential").sample_ids(3, 4), [3, 4, 5, 6])


def pieces(sample_ids: np.ndarray, n: int) -> int:
    """How many runs of stored neighbours a set of samples makes, on the ring 0…n-1."""
    stored = np.sort(sample_ids)
    return max(1, np.count_nonzero(np.diff(np.append(stored, stored[0] + n)) > 1))


@pytest.mark.parametrize(("n", "block", "window"), [(10_000, 100, 8), (10_037, 100, 8), (5_050, 64, 5), (333, 50, 2)])
def test_block_order_reads_a_window_from_few_blocks(n: int, block: int, window: int) -> None:
    tails = []
    for epoch in range(6):
        plan = EpochPlan(num_samples=n, epoch=epoch, order="block", block_size=block, window_blocks=window)
        full = whole(plan)
        size = block * window
        for start in range(0, n, size):
            assert pieces(full[start : start + size], n) <= window + 1  # blocks, and the rest n mod block
        first = full[:size]
        assert np.count_nonzero(np.diff(first) == 1) < size // 10  # shuffled inside the window
        tails.append(frozenset(full[-(n % block or block) :].tolist()))
    assert len(set(tails)) == len(tails)  # what a dropped last batch drops is another set each epoch
    blocks = EpochPlan(num_samples=n, order="global")
    assert pieces(whole(blocks)[: block * window], n) > 2 * (window + 1)  # the measure tells the orders apart


def test_each_window_is_shuffled_in_its_own_way() -> None:
    """The step from one position to the next, modulo the block, identifies a window's shuffle."""
    block, window = 100, 8
    plan = EpochPlan(num_samples=10_000, order="block", block_size=block, window_blocks=window)
    windows = whole(plan)[: 10_000 // (block * window) * block * window].reshape(-1, block * window)
    steps = np.diff(windows, axis=1) % block
    for a in range(len(steps)):
        for b in range(a):
            assert np.count_nonzero(steps[a] == steps[b]) < 40  # 8 are expected


def test_block_order_moves_samples_everywhere() -> None:
    """Over epochs each stored sample is as often early as late, the first and the last included."""
    n, epochs = 60, 1000
    places = np.stack(
        [np.argsort(whole(EpochPlan(num_samples=n, epoch=e, order="block", block_size=8, window_blocks=2)))
         for e in range(epochs)]
    )  # fmt: skip
    for sample in (0, 1, n // 2, n - 1):
        assert abs(chi_square(np.bincount(places[:, sample] // 10, minlength=6))) < 5


@pytest.mark.parametrize(("start", "count"), [(-1, 1), (0, 101), (100, 1), (5, -1), (101, 0)])
@pytest.mark.parametrize("order", ORDERS)
def test_positions_outside_the_epoch_are_errors(order: Order, start: int, count: int) -> None:
    with pytest.raises(ValueError, match="outside an epoch of 100"):
        EpochPlan(num_samples=100, order=order).sample_ids(start, count)
    assert len(EpochPlan(num_samples=100, order=order).sample_ids(100, 0)) == 0


@pytest.mark.parametrize("wrong", [{"order": "random"}, {"num_samples": 0}, {"block_size": 0}, {"window_blocks": 0}])
def test_settings_that_make_no_plan_are_errors(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"order|at least 1"):
        EpochPlan(**({"num_samples": 10} | wrong))  # type: ignore[arg-type]


@pytest.mark.parametrize("order", ORDERS)
def test_nothing_is_as_long_as_the_data_set(order: Order) -> None:
    start_s = time.perf_counter()
    plan = EpochPlan(num_samples=10**12, order=order)
    sample_ids = plan.sample_ids(10**12 - 4096, 4096)
    draws = plan.uniforms("random_resized_crop", 10**12 - 4096, 4096, 22)
    assert time.perf_counter() - start_s < 1
    assert len(set(sample_ids.tolist())) == 4096
    assert sample_ids.min() >= 0
    assert sample_ids.max() < 10**12
    assert draws.shape == (4096, 22)


# --- the draws


@pytest.mark.parametrize("num_draws", [1, 2, 4, 5, 22])
def test_draws_belong_to_positions(num_draws: int) -> None:
    plan = EpochPlan(num_samples=10**9, seed=5, epoch=1)
    for start in (0, 1, 10**8 + 3):
        full = plan.uniforms("hflip", start, 50, num_draws)
        for cut in (1, 17, 49):
            parts = [plan.uniforms("hflip", start, cut, num_draws)]
            parts.append(plan.uniforms("hflip", start + cut, 50 - cut, num_draws))
            assert np.array_equal(np.concatenate(parts), full)
    assert len(np.unique(plan.uniforms("hflip", 0, 1000, num_draws))) == 1000 * num_draws


def test_draws_are_uniform_and_independent() -> None:
    """Kolmogorov-Smirnov against [0, 1), and no correlation between columns, neighbours, streams, epochs or seeds."""
    n = 20_000
    plan = EpochPlan(num_samples=n, seed=1)
    draws = plan.uniforms("a", 0, n, 22)
    assert draws.dtype == np.float64
    assert draws.min() >= 0
    assert draws.max() < 1
    for column in draws.T:
        steps = np.sort(column)
        assert np.abs(steps - (np.arange(n) + 0.5) / n).max() < 2.3 / np.sqrt(n)  # p = 5e-5
    others = [
        plan.uniforms("b", 0, n, 1)[:, 0],
        EpochPlan(num_samples=n, seed=1, epoch=1).uniforms("a", 0, n, 1)[:, 0],
        EpochPlan(num_samples=n, seed=2).uniforms("a", 0, n, 1)[:, 0],
        np.roll(draws[:, 0], 1),
        whole(plan) / n,
    ]
    correlations = np.corrcoef(np.vstack([draws.T, *others]))
    assert np.abs(correlations - np.eye(len(correlations))).max() < 5 / np.sqrt(n)


# --- the shares of the ranks

GLOBAL_BATCH = 24
SHARES = [(1, 24), (1, 8), (2, 12), (2, 4), (3, 8), (3, 2), (8, 3), (8, 1)]  # (world size, batch size)


def rank_spans(world_size: int, batch_size: int, num_samples: int, position: int = 0) -> list[list[Span]]:
    return [
        list(
            train_spans(
                num_samples, position, global_batch_size=GLOBAL_BATCH, batch_size=batch_size, rank=rank,
                world_size=world_size,
            )
        )
        for rank in range(world_size)
    ]  # fmt: skip


@pytest.mark.parametrize(("world_size", "batch_size"), SHARES)
@pytest.mark.parametrize("num_samples", [24, 47, 100, 240])
def test_a_global_step_is_the_same_positions_at_any_world_size(
    world_size: int, batch_size: int, num_samples: int
) -> None:
    rounds = GLOBAL_BATCH // (world_size * batch_size)
    for position in (0, GLOBAL_BATCH):
        ranks = rank_spans(world_size, batch_size, num_samples, position)
        steps = max(0, (num_samples - position) // GLOBAL_BATCH)
        assert [len(spans) for spans in ranks] == [steps * rounds] * world_size  # no rank waits for another
        for step in range(steps):
            here = [span for spans in ranks for span in spans[step * rounds : (step + 1) * rounds]]
            positions = sorted(p for span in here for p in range(span.start, span.start + span.count))
            first = position + step * GLOBAL_BATCH
            assert positions == list(range(first, first + GLOBAL_BATCH))
            assert all(span.count == batch_size for span in here)
            assert max(span.end for span in here) == first + GLOBAL_BATCH
        for spans in zip(*ranks, strict=True):
            assert len({span.end for span in spans}) == 1  # every rank would resume at the same position


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("batch_size", [1, 7, 32, 200])
@pytest.mark.parametrize("num_samples", [1, 23, 100])
def test_validation_covers_each_position_once(world_size: int, batch_size: int, num_samples: int) -> None:
    for position in (0, num_samples // 2):
        ranks = [
            list(eval_spans(num_samples, position, batch_size=batch_size, rank=rank, world_size=world_size))
            for rank in range(world_size)
        ]
        seen = sorted(p for spans in ranks for span in spans for p in range(span.start, span.start + span.count))
        assert seen == list(range(position, num_samples))
        assert all(1 <= span.count <= batch_size for spans in ranks for span in spans)
        assert max(spans[-1].end for spans in ranks if spans) == num_samples


@pytest.mark.parametrize(
    ("global_batch_size", "batch_size", "world_size"), [(24, 5, 1), (24, 8, 2), (24, 0, 1), (24, -8, 1), (24, 48, 1),
                                                        (0, 8, 1), (-24, 8, 1)],
)  # fmt: skip
def test_sizes_that_do_not_divide_are_errors(global_batch_size: int, batch_size: int, world_size: int) -> None:
    with pytest.raises(ValueError, match="does not divide"):
        next(
            train_spans(
                100, 0, global_batch_size=global_batch_size, batch_size=batch_size, rank=0, world_size=world_size
            )
        )


def test_validation_without_a_batch_size_is_an_error() -> None:
    with pytest.raises(ValueError, match="batch_size"):
        next(eval_spans(100, 0, batch_size=0, rank=0, world_size=1))


# --- the feed: laws 1, 2 and 3

NUM_SAMPLES = 103
JITTER = AugmentConfig(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)


def make_split(n: int = NUM_SAMPLES) -> Split:
    """A sample table without shards: the feed reads no byte."""
    rng = np.random.default_rng(0)
    samples = np.zeros(n, SAMPLE_DTYPE)
    samples["height"], samples["width"] = rng.integers(20, 500, n), rng.integers(20, 500, n)
    samples["label"] = rng.integers(0, 10, n)
    return Split("train", Path("nowhere"), (), samples)


def make_feed(order: Order = "global", augment: AugmentConfig | None = JITTER, **share: int) -> Feed:
    config = DataConfig(order=order, block_size=10, window_blocks=3, image_size=64)
    return Feed(split=make_split(), config=config, augment=augment, seed=4, **share)


def sequence(feeds: list[Feed], epoch: int, position: int = 0) -> dict[int, tuple[object, ...]]:
    """Position → sample id, label and every parameter, over all ranks."""
    seen: dict[int, tuple[object, ...]] = {}
    for feed in feeds:
        for batch in feed.batches(epoch, position, feed.image_size):
            for row in range(batch.span.count):
                values = [batch.sample_ids[row], batch.labels[row], *(batch.params[name][row] for name in batch.params)]
                assert batch.span.start + row not in seen
                seen[batch.span.start + row] = tuple(np.asarray(value).tobytes() for value in values)
    return seen


@pytest.mark.parametrize("order", ["global", "block"])
@pytest.mark.parametrize(("world_size", "batch_size"), SHARES)
def test_the_training_sequence_is_the_same_on_any_machine(order: Order, world_size: int, batch_size: int) -> None:
    one = sequence([make_feed(order, batch_size=GLOBAL_BATCH, global_batch_size=GLOBAL_BATCH)], epoch=3)
    assert sorted(one) == list(range(96))
    feeds = [
        make_feed(
            order, batch_size=batch_size, global_batch_size=GLOBAL_BATCH, rank=rank, world_size=world_size
        )
        for rank in range(world_size)
    ]  # fmt: skip
    assert sequence(feeds, epoch=3) == one
    for position in range(0, 120, GLOBAL_BATCH):
        resumed = sequence(feeds, epoch=3, position=position)
        assert resumed == {p: values for p, values in one.items() if p >= position}
    other = sequence(feeds, epoch=4)
    assert sum(other[p] == one[p] for p in one) == 0


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 6, 8, 12, 24])
def test_a_resume_may_change_the_global_batch(batch_size: int) -> None:
    one = sequence([make_feed(batch_size=24, global_batch_size=24)], epoch=0)
    other = sequence([make_feed(batch_size=batch_size, global_batch_size=batch_size)], epoch=0, position=24)
    assert all(other[p] == one[p] for p in range(24, 96))


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("batch_size", [1, 10, 64])
def test_validation_is_the_stored_order_at_any_world_size(world_size: int, batch_size: int) -> None:
    feeds = [
        make_feed(augment=None, batch_size=batch_size, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    one = sequence([make_feed(augment=None, batch_size=NUM_SAMPLES)], epoch=0)
    assert sequence(feeds, epoch=5) == one  # and no epoch changes it
    assert [int(np.frombuffer(one[p][0], np.int64)[0]) for p in range(NUM_SAMPLES)] == list(range(NUM_SAMPLES))


@pytest.mark.parametrize("augment", [JITTER, None])
@pytest.mark.parametrize(("world_size", "batch_size"), SHARES)
def test_len_counts_the_batches(augment: AugmentConfig | None, world_size: int, batch_size: int) -> None:
    for rank in range(world_size):
        feed = make_feed(
            augment=augment, batch_size=batch_size, global_batch_size=GLOBAL_BATCH, rank=rank, world_size=world_size
        )
        assert len(feed) == len(list(feed.spans(0)))


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 16), (2, 5), (3, 4), (8, 7)])
@pytest.mark.parametrize("at_most", [1, 20, 102, 103, 500])
def test_a_choice_of_validation_samples_is_the_same_on_any_machine(
    at_most: int, world_size: int, batch_size: int
) -> None:
    share = {"at_most": at_most, "batch_size": batch_size, "world_size": world_size}
    feeds = [make_feed(augment=None, rank=rank, **share) for rank in range(world_size)]
    batches = [list(feed.batches(0, 0, 64)) for feed in feeds]
    assert [len(of_rank) for of_rank in batches] == [len(feed) for feed in feeds]
    ids = sorted(np.concatenate([batch.sample_ids for of_rank in batches for batch in of_rank]).tolist())
    expected = EpochPlan(num_samples=NUM_SAMPLES).sample_ids(0, min(at_most, NUM_SAMPLES)).tolist()
    assert ids == sorted(expected)
    assert feeds[0].num_samples == len(ids) == len(set(ids))
    labels = make_split().samples["label"]
    for batch in (batch for of_rank in batches for batch in of_rank):
        assert batch.labels.tolist() == labels[batch.sample_ids].tolist()
    announced = np.concatenate(list(feeds[0].windows(0, 0)))
    assert sorted(announced.tolist()) == ids, "the samples that a reader must fetch"


def test_a_choice_is_spread_over_the_split_and_part_of_a_larger_one() -> None:
    def chosen(at_most: int) -> np.ndarray:
        feed = make_feed(augment=None, batch_size=16, at_most=at_most)
        return np.concatenate([batch.sample_ids for batch in feed.batches(0, 0, 64)])

    assert set(chosen(20)) < set(chosen(50))
    assert (np.diff(chosen(50)) > 0).all(), "read in stored order"
    thirds = np.bincount(chosen(50) * 3 // NUM_SAMPLES, minlength=3)  # a split may be stored class by class
    assert thirds.min() >= 8


def test_feeds_that_cannot_work_are_errors() -> None:
    with pytest.raises(ValueError, match="103 samples, fewer than one global batch of 200"):
        make_feed(batch_size=200, global_batch_size=200)
    with pytest.raises(ValueError, match="does not divide"):
        make_feed(batch_size=5, global_batch_size=24)
    with pytest.raises(ValueError, match="does not divide"):
        make_feed(batch_size=5)  # without global_batch_size
    with pytest.raises(ValueError, match="no samples"):
        Feed(split=make_split(0), config=DataConfig(), augment=None, batch_size=1)


def test_switching_colours_on_leaves_the_crops() -> None:
    with_colours = next(make_feed(batch_size=24, global_batch_size=24).batches(0, 0, 64))
    without = next(make_feed(augment=AugmentConfig(), batch_size=24, global_batch_size=24).batches(0, 0, 64))
    for name in ("anchor", "shape", "mirror"):
        assert np.array_equal(with_colours.params[name], without.params[name])
    new = {name for name in with_colours.params if not isinstance(name, StepArray)} - set(without.params)
    assert new == {"brightness", "contrast", "saturation", "hue"}


def test_planning_costs_little() -> None:
    """A million-sample plan makes a batch of 256 in about a millisecond: DALI needs more for two images."""
    split = Split("train", Path("nowhere"), (), np.resize(make_split().samples, 1_281_167))
    feed = Feed(split=split, config=DataConfig(), augment=JITTER, batch_size=256, global_batch_size=256)
    start_s = time.perf_counter()
    assert len(list(islice(feed.batches(0, 1_000_192, 224), 20))) == 20
    assert time.perf_counter() - start_s < 1


class Unreadable:
    """A sample table of any length that generates requested rows and cannot be converted to an array."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows

    def __len__(self) -> int:
        return self.num_rows

    def take(self, sample_ids: np.ndarray) -> np.ndarray:
        if not isinstance(sample_ids, np.ndarray) or len(sample_ids) > 1 << 20:
            raise RuntimeError("the whole table was asked for")
        assert sample_ids.min() >= 0
        assert sample_ids.max() < self.num_rows
        rows = np.zeros(len(sample_ids), SAMPLE_DTYPE)
        rows["size"], rows["height"], rows["width"] = 110_000, 375, 500
        return rows

    def __array__(self, *args: object, **options: object) -> np.ndarray:
        raise RuntimeError("the whole table was made an array")


def test_a_billion_samples_are_planned_without_an_array_of_them() -> None:
    split = Split("train", Path("nowhere"), (), Unreadable(10**9))  # type: ignore[arg-type]
    step, ids = 16 * 1024, []
    for rank in (0, 512, 1023):
        feed = Feed(split=split, config=DataConfig(order="block"), augment=AugmentConfig(), batch_size=16,
                    global_batch_size=step, rank=rank, world_size=1024)  # fmt: skip
        for position in (0, 10**9 // 2 // step * step, (10**9 // step - 1) * step):
            tracemalloc.start()
            ids.append(feed.batch(0, next(feed.spans(position)), 224).sample_ids)
            peak_bytes = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak_bytes < 1e6 or len(ids) == 1  # in the first, NumPy loads parts of itself
    assert len(np.unique(np.concatenate(ids))) == 9 * 16, "no sample comes twice"


def test_neighbouring_spans_are_one_run() -> None:
    spans = [Span(0, 4, 4), Span(4, 4, 8), Span(12, 4, 16), Span(16, 2, 18), Span(2, 1, 3)]
    assert runs(spans) == [(0, 8), (12, 6), (2, 1)]
    assert runs([]) == []
