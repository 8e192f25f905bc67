"""`--max-minutes`: how fast the schedule must go for a run to end in time.

The schedule is a function of the recipe's epochs, 0 to E. A run that is to end early goes through all of it on fewer
samples: each step moves it on by more than its share of an epoch.
"""


class Budget:
    """The time a run has, over its restarts.

    `pace` is asked once a log interval; the answer holds until the next one. All ranks must pass the same times.
    """

    # A validation before the first is measured counts as so much of training on as many images.
    VALIDATION_SHARE = 0.5

    def __init__(self, total_s: float, epochs: int, num_val: int) -> None:
        self.total_s, self._epochs, self._num_val = total_s, epochs, num_val
        self.validation_s: float | None = None  # how long the last one took

    def is_over(self, elapsed_s: float) -> bool:
        return elapsed_s >= self.total_s - (self.validation_s or 0.0)

    def pace(self, schedule_epoch: float, elapsed_s: float, images_per_s: float, num_train: int) -> float:
        """How many times faster than the data the schedule must go: 1 where the whole recipe fits, else more.

        `schedule_epoch`: where it is, 0 to E. `images_per_s`: of training, over all ranks, as last measured.
        """
        reserve_s = self.validation_s
        if reserve_s is None:
            reserve_s = self.VALIDATION_SHARE * self._num_val / images_per_s
        images_left = max((self.total_s - reserve_s - elapsed_s) * images_per_s, 1.0)
        return max((self._epochs - schedule_epoch) * num_train / images_left, 1.0)
