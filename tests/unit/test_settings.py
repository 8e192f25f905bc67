"""Settings: each has a help text, and its range is checked at both ends, in every section of a recipe."""

import math
import re
from dataclasses import dataclass, fields, replace
from typing import Any, get_type_hints

import pytest

from penstock.recipes import FREE_ON_RESUME, Recipe, known_settings
from penstock.recipes.config import keys
from penstock.settings import Setting, check, setting, settings_of

SECTIONS = {field.name: getattr(Recipe(), field.name) for field in fields(Recipe)}
BOUNDS = ("at_least", "above", "at_most", "below")
BOUNDED = [
    (key, bound) for key, about in known_settings().items() for bound in BOUNDS if getattr(about, bound) is not None
]
# what a section must hold for a setting to have an effect, where `belongs_to` does not say it
BESIDE: dict[str, dict[str, Any]] = {
    "loss.bce_target_threshold": {"name": "bce"},
    "data.val_image_size": {"val_resize_size": 10**6},
    "data.val_resize_size": {"val_image_size": 1},
    "optimizer.momentum": {"nesterov": False},
    "schedule.step_epochs": {"name": "step", "milestones": (3.0,)},
    "schedule.gamma": {"name": "step", "milestones": (3.0,)},
    "phases.image_size": {"start_epochs": (0,)},
    "phases.global_batch_size": {"start_epochs": (0,)},
    "phases.augment_strength": {"start_epochs": (0,)},
}
NUMBERS = {"optimizer.betas": 2, "data.std": 3}  # of a tuple; else 1, and of a range 2


def with_value(key: str, number: float) -> Any:
    """The key's section with this number, in each place of a tuple, where it has an effect."""
    section, _, name = key.partition(".")
    config, about = SECTIONS[section], known_settings()[key]
    kind = get_type_hints(type(config))[name]
    value: Any = int(number) if "int" in str(kind) else float(number)
    if "tuple" in str(kind):
        value = (value,) * NUMBERS.get(key, 2 if about.is_range else 1)
    beside = dict(BESIDE.get(key, {}))
    if about.belongs_to:
        beside.setdefault(about.belongs_to, about.when[0] if about.when else 1)
    return replace(config, **beside, **{name: value})


def step_of(key: str) -> float:
    """The least distance of two values, or a small one."""
    section, _, name = key.partition(".")
    return 1 if "int" in str(get_type_hints(type(SECTIONS[section]))[name]) else 1e-6


def test_every_key_of_a_recipe_is_a_setting_with_a_text() -> None:
    known = known_settings()
    assert list(known) == keys(Recipe)
    for key, about in known.items():
        assert about.text.strip() == about.text != "", key
        assert about.text[-1] == ".", key
    for section in SECTIONS.values():
        assert type(section).__doc__.strip()


@pytest.mark.parametrize(("key", "bound"), BOUNDED, ids=lambda part: part)
def test_a_range_holds_at_its_end(key: str, bound: str) -> None:
    end, step = getattr(known_settings()[key], bound), step_of(key)
    inwards = step if bound in ("at_least", "above") else -step
    name = key.partition(".")[2]
    allowed, refused = (end, end - inwards) if bound in ("at_least", "at_most") else (end + inwards, end)
    with_value(key, allowed)
    with pytest.raises(ValueError, match=f"^{name}: .* must "):
        with_value(key, refused)
    if step != 1:
        with pytest.raises(ValueError, match=f"^{name}: .*nan.* must "):
            with_value(key, math.nan)


@pytest.mark.parametrize("key", [key for key, about in known_settings().items() if about.is_range])
def test_a_pair_is_low_then_high(key: str) -> None:
    config, name = with_value(key, 1), key.partition(".")[2]
    assert getattr(replace(config, **{name: (1, 1)}), name) == (1, 1)
    falling = (1, 0.5) if known_settings()[key].at_most == 1 else (2, 1)  # both within the bounds
    with pytest.raises(ValueError, match=re.escape(f"{name}: {falling} must be low ≤ high, both ")):
        replace(config, **{name: falling})


@pytest.mark.parametrize("key", [key for key, about in known_settings().items() if about.belongs_to])
def test_what_it_belongs_to_is_a_setting_of_the_section_and_of_its_values(key: str) -> None:
    section, about = key.partition(".")[0], known_settings()[key]
    assert f"{section}.{about.belongs_to}" in known_settings()
    choices = get_type_hints(type(SECTIONS[section]))[about.belongs_to]
    assert all(f"'{value}'" in str(choices) for value in about.when)


def test_ranges_in_words() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Section:
        count: int = setting(1, "So many.", at_least=1)
        more: int = setting(0, "As many more.", at_least=0)
        share: float = setting(0.5, "A share.", at_least=0, at_most=1)
        rate: float | None = setting(None, "A rate.", at_least=0, below=1)
        area: float = setting(1.0, "An area.", above=0, at_most=8)
        pair: tuple[float, float] = setting((1.0, 2.0), "A range.", at_least=0, at_most=9, is_range=True)
        many: tuple[float, ...] = setting((), "Some numbers.", above=0)
        plain: str = setting("", "No number.")
        none: int = 3

        def __post_init__(self) -> None:
            check(self)

    Section(rate=None, area=8, many=(1e-9, math.inf), count=10**9)
    for values, message in (
        ({"count": 0}, "count: 0 must be at least 1"),
        ({"more": -1}, "more: -1 must be 0 or more"),
        ({"share": 1.5}, "share: 1.5 must be between 0 and 1"),
        ({"rate": 1.0}, "rate: 1.0 must be in [0, 1)"),
        ({"area": 0.0}, "area: 0.0 must be above 0 and at most 8"),
        ({"pair": (2, 1)}, "pair: (2, 1) must be low ≤ high, both between 0 and 9"),
        ({"pair": (1, math.nan)}, "pair: (1, nan) must be low ≤ high, both between 0 and 9"),
        ({"many": (1.0, 0.0)}, "many: (1.0, 0.0) must be above 0"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            Section(**values)
    assert "none" not in settings_of(Section)
    assert isinstance(settings_of(Section())["plain"], Setting)


def test_what_changes_only_the_speed_may_change_on_resume() -> None:
    only_speed = {key for key, about in known_settings().items() if about.only_speed}
    assert only_speed == {
        f"data.{name}" for name in ("threads", "prefetch", "read_ahead", "hw_decoder_load", "affinity")
    }
    assert only_speed < FREE_ON_RESUME < set(keys(Recipe))
    assert {"optimizer.lr", "data.mean", "train.epochs", "model.name"}.isdisjoint(FREE_ON_RESUME)


@pytest.mark.parametrize("seed", [-1, 1 << 20])
def test_a_seed_that_torch_cannot_take_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=f"^seed: {seed} must be between 0 and 1048575$"):
        replace(Recipe().train, seed=seed)


@pytest.mark.parametrize("value", [(0.5,), [0.5, 0.2], (0.1, 0.2, 0.3)])
def test_a_range_is_two_numbers(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^scale: .* must be low ≤ high"):
        replace(Recipe().augment, scale=value)
