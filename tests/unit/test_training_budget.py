"""`--max-minutes` on the test's own clock: the schedule's position at any time, and the end of the run."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from penstock.training.budget import SHOWING_S, Budget, Work
from penstock.training.learner import RunState


@dataclass
class Machine:
    """A simulated run of `train.py` on a machine of known speed. All times are in seconds.

    image_s: of a training image, by its size and the time. start_s: until the first step; a phase's first step takes
    phase_s more. is_timed: a validation's images are timed beforehand. is_gpu: steps are asked for at once, and figures
    come an interval late.
    """

    work: Work
    total_s: float
    image_s: Callable[[int, float], float]
    validation_s: float
    start_s: float = 5.0
    is_timed: bool = True
    phase_s: float = 0.0
    log_every: int = 20
    is_gpu: bool = False
    now: float = 0.0
    at: RunState = field(default_factory=RunState)
    places: list[tuple[float, float, int]] = field(default_factory=list)  # time, share of the schedule, step
    etas: list[tuple[float, float]] = field(default_factory=list)  # time, and when the run was thought to end
    sizes: list[int] = field(default_factory=list)  # by epoch of the data
    validations: int = 0

    def run(self) -> "Machine":
        work, at, budget = self.work, self.at, Budget(self.work, self.total_s, started_s=self.start_s)
        if self.is_timed and work.num_val:
            budget.expect((self.validation_s - SHOWING_S) / work.num_val, self.now)
        self.now += self.start_s
        loaded, interval, told, closed = 0, 0, at.step, at.step
        made = {at.step: self.now}  # when a step is done
        while True:
            finished = at.schedule_epoch >= work.epochs or at.step >= work.last_step
            due = at.position == 0 and at.epoch > 0 and at.epoch % work.eval_every == 0
            if work.num_val and (finished or (due and budget.affords_validation(at, self.now))) and not at.validation:
                self.now += self.validation_s
                self.validations += 1
                at.validation = {"num_images": work.num_val}
                budget.validated(self.validation_s, self.now)
                at.pace = budget.pace(at, self.now)
            if finished:
                break
            if at.position == 0:
                at.phase_epoch = int(at.schedule_epoch)
            size, batch = work.size(at.phase_epoch)
            self.sizes.append(size)
            self.now += self.phase_s * (size != loaded)
            loaded, per_epoch = size, work.num_train // batch

            def tell(upto: int) -> None:
                nonlocal told
                self.now = max(self.now, made[upto])
                if upto > told:
                    budget.trained(at, upto - told, self.now, asked_for=at.step - upto)
                    told, at.pace = upto, budget.pace(at, self.now)
                    self.etas.append((self.now, self.now + budget.remaining(at, self.now).seconds))

            while (
                at.position + batch <= work.num_train and at.step < work.last_step and at.schedule_epoch < work.epochs
            ):
                begins = max(self.now, made[at.step])
                made[at.step + 1] = begins + batch * self.image_s(size, begins)
                self.now = self.now + 1e-3 if self.is_gpu else made[at.step + 1]
                at.stepped(at.position + batch, steps_per_epoch=per_epoch, global_batch_size=batch)
                self.places.append((made[at.step], at.schedule_epoch / work.epochs, at.step))
                interval += 1
                if interval == self.log_every or budget.is_due(at.step):
                    tell(closed if self.is_gpu else at.step)
                    closed, interval = at.step, 0
            tell(at.step)
            closed, interval = at.step, 0
            if at.position + batch > work.num_train:
                at.epoch, at.position = at.epoch + 1, 0
        self.now += budget.closing_s
        return self

    def schedule_at(self, share: float, of: str = "time") -> float:
        """How much of the schedule is done when `share` of the training's time, or of its steps, is over."""
        first, last = self.places[0], self.places[-1]
        key = (lambda place: place[0]) if of == "time" else (lambda place: place[2])
        limit = key(first) + share * (key(last) - key(first))
        return max(place[1] for place in self.places if key(place) <= limit + 1e-9)


def work(epochs: int = 16, *, phases: dict[int, int] | None = None, num_train: int = 50_000, **fields: int) -> Work:
    """CIFAR-10's, in one size or in `phases`: from which epoch on which."""
    phases = phases or {0: 32}
    sizes = tuple(phases[max(start for start in phases if start <= epoch)] for epoch in range(epochs))
    batch = fields.pop("batch", 512)
    last_step = epochs * (num_train // batch)
    fields = {"num_val": 10_000, "val_image_size": 32, "eval_every": 4, "last_step": last_step} | fields
    return Work(image_sizes=sizes, batch_sizes=(batch,) * epochs, num_train=num_train, **fields)


def by_pixels(image_s: float, power: float = 2.0) -> Callable[[int, float], float]:
    """The time for an image of 32 px; other sizes take time in proportion to their pixels."""
    return lambda size, now: image_s * (size / 32) ** power


GROWING = {0: 24, 8: 32}
CASES: dict[str, tuple[Work, float, Callable[[int, float], float], float]] = {
    # work, seconds of the budget, seconds an image, seconds a validation
    "steady": (work(), 60, by_pixels(5e-4), 2.5),
    "much too long a recipe": (work(90), 60, by_pixels(1e-3), 5),
    "a size that grows, many epochs": (work(phases=GROWING, eval_every=1), 300, by_pixels(5e-4), 2),
    "four times slower later": (work(phases={0: 16, 8: 32}), 200, by_pixels(5e-4), 2),
    "twice as slow as its pixels": (work(phases={0: 16, 8: 32}), 200, by_pixels(5e-4, 3.0), 2),
    "sizes that cost the same": (work(phases={0: 16, 8: 32}), 200, by_pixels(5e-4, 0.0), 2),
    "less than an epoch": (work(phases=GROWING), 60, by_pixels(2e-3), 8),
    "validations that take more than training": (work(eval_every=1), 300, by_pixels(2e-4), 12),
    "validations cost what they are thought to": (work(90), 120, by_pixels(1e-3), 5),
    "large steps": (work(batch=5000), 100, by_pixels(5e-4), 2.5),
    "steps of a second": (work(batch=2000), 60, by_pixels(5e-4), 2.5),
    "no validation": (work(num_val=0), 60, by_pixels(5e-4), 0),
    "slows to a third": (work(), 120, lambda size, now: 5e-4 * (3 if now > 50 else 1), 2.5),
    "speeds up": (work(), 120, lambda size, now: 5e-4 / (3 if now > 50 else 1), 2.5),
    "uneven": (work(), 120, lambda size, now: 5e-4 * (1 + 0.4 * math.sin(7.3 * now) * math.sin(2.1 * now)), 2.5),
    "stalls for 15 s": (work(), 120, lambda size, now: 5e-4 * (60 if 40 < now < 55 else 1), 2.5),
    "ImageNet on a GPU": (
        work(16, phases={0: 128, 6: 160, 12: 192}, num_train=1_281_167, batch=1024, num_val=50_000, val_image_size=256),
        1800, lambda size, now: 1 / 3000 * (size / 160) ** 2, 20,
    ),
}  # fmt: skip


@pytest.mark.parametrize("is_gpu", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_the_command_ends_in_time_and_the_schedule_at_its_end(name: str, is_gpu: bool) -> None:
    work, total_s, image_s, validation_s = CASES[name]
    run = Machine(work, total_s, image_s, validation_s, is_gpu=is_gpu).run()
    step_s = work.batch_sizes[0] * image_s(max(work.image_sizes), run.now)
    assert run.now == pytest.approx(total_s, abs=max(0.03 * total_s, step_s))
    assert run.places[-1][1] >= 1
    assert run.places[-2][1] < 1


@pytest.mark.parametrize("validation_s", [0.5, 5, 15])
def test_a_validation_is_guessed_from_the_training_where_none_was_timed(validation_s: float) -> None:
    """5 s are what it is taken for. What it takes more is over, where it is the first and the last; later ones are
    known."""
    run = Machine(work(90), 120, by_pixels(1e-3), validation_s, is_timed=False).run()
    assert run.validations == 1
    assert run.now == pytest.approx(120 + validation_s - 5, abs=2)
    run = Machine(work(90, eval_every=1), 240, by_pixels(1e-3), validation_s, is_timed=False).run()
    assert run.validations >= 3
    assert run.now == pytest.approx(240, abs=5)


def test_what_leaves_little_time_for_training_is_said() -> None:
    budget = Budget(work(), 60, started_s=5)
    assert not budget.expect(1e-3, now=5)
    said = budget.expect(4e-3, now=5)
    assert "--max-minutes 1: scoring at the end takes about 42 s of the remaining 50 s" in said
    assert "--max-val-images" in said


FORESEEN = [name for name in CASES if name not in (
    "twice as slow as its pixels", "sizes that cost the same", "slows to a third", "speeds up", "stalls for 15 s",
)]  # fmt: skip


@pytest.mark.parametrize("name", FORESEEN)
def test_the_schedule_goes_as_the_steps_do(name: str) -> None:
    """Whatever the phases cost: half of the steps are half of the schedule."""
    run = Machine(*CASES[name]).run()
    for share in (0.25, 0.5, 0.75, 0.9):
        assert run.schedule_at(share, of="steps") == pytest.approx(share, abs=0.02 + 1 / run.at.step)


def test_a_slower_phase_to_come_is_foreseen() -> None:
    """Two phases of half the schedule each, the later one four times slower an image: it gets four fifths of the time
    that the steps have."""
    run = Machine(*CASES["four times slower later"]).run()
    turn = next(time for time, share, _ in run.places if share > 0.52)  # where an epoch of the data begins after half
    first, last = run.places[0][0], run.places[-1][0]
    assert (turn - first) / (last - first) == pytest.approx(0.2, abs=0.05)
    assert set(run.sizes) == {16, 32}


@pytest.mark.parametrize("name", [name for name in CASES if name in FORESEEN and "more than training" not in name])
def test_the_eta_is_the_budgets_end(name: str) -> None:
    work, total_s, image_s, validation_s = CASES[name]
    run = Machine(work, total_s, image_s, validation_s).run()
    assert run.etas[0][1] <= total_s, "before the pace is known, too"
    for _, end in run.etas[3:]:
        assert end == pytest.approx(total_s, rel=0.03)


def test_a_recipe_that_fits_is_not_hurried_and_its_eta_is_its_own() -> None:
    fits = work(4, phases={0: 16, 2: 32}, eval_every=1)
    limited, free = (Machine(fits, total_s, by_pixels(5e-4), 2).run() for total_s in (600, math.inf))
    assert limited.places == free.places
    assert [(m.at.epoch, m.at.position, m.at.step, m.validations) for m in (limited, free)] == [(4, 0, 388, 4)] * 2
    assert limited.places[-1][1] == 1, "to the bit, or there would be one step more"
    for run in (limited, free):
        for _, end in run.etas[2:]:
            assert end == pytest.approx(run.now, rel=0.05)


def test_a_validation_that_leaves_no_time_for_the_schedule_is_left_out() -> None:
    """One epoch fits, and a little more: its end is no place for a validation besides the last one."""
    run = Machine(work(90, eval_every=1, val_image_size=64), 100, by_pixels(1e-3), 20).run()
    assert run.at.epoch == 1
    assert run.validations == 1
    assert run.now == pytest.approx(100, abs=2)


def test_a_run_that_goes_on_has_the_time_that_is_left() -> None:
    first = Machine(work(last_step=80), 100, by_pixels(5e-4), 2.5).run()
    assert first.at.step == 80
    rest = Machine(work(), 100, by_pixels(5e-4), 2.5, at=first.at, now=first.now).run()
    assert rest.now == pytest.approx(100, abs=2)
    shares = [share for _, share, _ in first.places + rest.places]
    assert shares == sorted(shares)
    assert shares[-1] >= 1
    over = Machine(work(), 20, by_pixels(5e-4), 2.5, at=RunState(epoch=1, step=97, schedule_epoch=3.0), now=30).run()
    assert over.at.step <= 100, "nothing is left: the schedule ends with the next steps"
    assert over.places[-1][1] >= 1


def test_each_size_to_come_is_compiled_as_the_first_was() -> None:
    phases = work(90, phases={0: 128, 30: 192}, eval_every=90, compiles=1)
    run = Machine(phases, 400, by_pixels(1 / 50_000), 20, phase_s=60, is_gpu=True).run()
    assert set(run.sizes) == {128, 192}
    for share in (0.25, 0.5, 0.75):
        assert run.schedule_at(share, of="steps") == pytest.approx(share, abs=0.02)


def test_steps_that_are_limited_too() -> None:
    run = Machine(work(last_step=30), 3600, by_pixels(5e-4), 2).run()
    assert run.at.step == 30
    assert run.at.schedule_epoch == 30 / 97
    assert run.etas[-1][1] == pytest.approx(run.now, abs=3)
