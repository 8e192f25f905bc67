"""Settings of a recipe: each field declares its default, its text, its range and what it affects.

    epochs: int = setting(90, "Passes over the training split.", at_least=1)

A section of a recipe is a frozen dataclass of such fields. It calls `check` in its `__post_init__`. `settings_of`
returns the declarations.
"""

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What `setting` declares about a field. The field's metadata has it under the key "setting"."""

    text: str
    at_least: float | None
    above: float | None
    at_most: float | None
    below: float | None
    is_range: bool
    belongs_to: str
    when: tuple[str, ...]
    only_speed: bool
    free_on_resume: bool
    scaled: bool

    def allows(self, value: object) -> bool:
        """Whether a number, or each number of a tuple, lies within the bounds. NaN never does."""
        numbers = tuple(value) if isinstance(value, tuple | list) else (value,)
        if self.is_range and not (len(numbers) == 2 and numbers[0] <= numbers[1]):
            return False
        return all(self._has(number) for number in numbers if isinstance(number, int | float))

    def _has(self, number: float) -> bool:
        return (
            (self.at_least is None or number >= self.at_least)
            and (self.above is None or number > self.above)
            and (self.at_most is None or number <= self.at_most)
            and (self.below is None or number < self.below)
        )

    def bounds(self) -> str:
        """The range in words: "between 0 and 1", "at least 1"."""
        if self.at_least is not None and self.at_most is not None:
            words = f"between {_shown(self.at_least)} and {_shown(self.at_most)}"
        elif self.at_least is not None and self.below is not None:
            words = f"in [{self.at_least:g}, {self.below:g})"
        elif self.at_least == 0:
            words = "0 or more"
        else:
            named = {"at least": self.at_least, "above": self.above, "at most": self.at_most, "below": self.below}
            words = " and ".join(f"{name} {bound:g}" for name, bound in named.items() if bound is not None)
        if self.is_range:
            words = f"low ≤ high, both {words}"
        return words


def _shown(bound: float) -> str:
    """The bound as text, an int in full: 1048575, not 1.04858e+06."""
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def setting(
    default: T,
    text: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    is_range: bool = False,
    belongs_to: str = "",
    when: tuple[str, ...] = (),
    only_speed: bool = False,
    free_on_resume: bool = False,
    scaled: bool = False,
) -> T:
    """Declare a field of a section, with its default.

    Args:
        text: sentences about what the setting does, its unit and its choices. The first sentence must make sense on
            its own: `--show-config` prints only that one.
        at_least, above, at_most, below: bounds of a number, or of each number of a tuple. None is always allowed.
        is_range: the value is a pair, low ≤ high.
        belongs_to: another setting of the same section. This setting has an effect only if that one has a value in
            `when`, or, without `when`, any value but 0.
        only_speed: the setting changes the speed, never the result.
        free_on_resume: a run may be resumed with another value. `only_speed` implies it.
        scaled: `AugmentConfig.scaled` multiplies the value.
    """
    about = Setting(
        text=text, at_least=at_least, above=above, at_most=at_most, below=below, is_range=is_range,
        belongs_to=belongs_to, when=when, only_speed=only_speed, free_on_resume=free_on_resume or only_speed,
        scaled=scaled,
    )  # fmt: skip
    return field(default=default, metadata={"setting": about})


def settings_of(section: "DataclassInstance | type[DataclassInstance]") -> dict[str, Setting]:
    """The declaration of each field that `setting` made, by name, in the order of declaration."""
    return {one.name: one.metadata["setting"] for one in fields(section) if "setting" in one.metadata}


def check(section: "DataclassInstance") -> None:
    """Check all settings of a section. Raises ValueError for a value outside its bounds, and for a value that was given
    but has no effect. The message begins with the setting's name."""
    known = settings_of(section)
    for name, about in known.items():
        value = getattr(section, name)
        if not about.allows(value):
            raise ValueError(f"{name}: {value} must be {about.bounds()}")
    for one in fields(section):
        if one.name in known and getattr(section, one.name) != one.default:
            _require_effect(section, one.name, known[one.name])


def _require_effect(section: "DataclassInstance", name: str, about: Setting) -> None:
    """Raises ValueError unless the setting that this one belongs to has a value with which this one is read."""
    if not about.belongs_to:
        return
    owner, value = about.belongs_to, getattr(section, about.belongs_to)
    if value in about.when or (value and not about.when):
        return
    if not about.when:
        lacking = f"without {owner}" if value == "" else f"with {owner} = 0"
        why = f"{lacking}; remove it, or set {owner}"
    elif owner == "name":  # many names may support the setting
        why = f'with name = "{value}"; remove it'
    else:
        why = f'unless {owner} = "{about.when[0]}"; remove it'
    raise ValueError(f"{name}: has no effect {why}")
