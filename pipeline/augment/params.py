"""The arrays of a batch, by name: what was drawn for it, and the arguments of the graph's steps made of that."""

from typing import NamedTuple

import numpy as np


class StepArray(NamedTuple):
    """The name of an array that is no parameter, but an argument of a step (`steps.step_arrays`)."""

    number: int  # of the step, from 0
    kind: str
    argument: str


Name = str | StepArray
AugmentParams = dict[Name, np.ndarray]  # one row a sample
