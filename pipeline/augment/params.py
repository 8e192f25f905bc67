"""Types for the arrays of a batch: the drawn parameters, and the arguments of the graph's steps made from them."""

from typing import NamedTuple

import numpy as np


class StepArray(NamedTuple):
    """The name of an array that is an argument of a step (`steps.step_arrays`), not a parameter."""

    number: int  # of the step, from 0
    kind: str
    argument: str


Name = str | StepArray
AugmentParams = dict[Name, np.ndarray]  # one row for each sample
