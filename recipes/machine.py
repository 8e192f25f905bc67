"""`machine.toml`: loader settings that `bench.py tune` found on a machine. They apply to every recipe on that machine.

    [machine]   where it was measured: cpu, cores, gpu (or "none"), ranks on the machine
    [data]      threads, prefetch, read_ahead, hw_decoder_load, affinity: they change the speed, never the result

The precedence is defaults < recipe < machine.toml < `--set`.
"""

import json
import os
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path

from penstock.pipeline.config import ONLY_SPEED, DataConfig
from penstock.recipes import Recipe, config
from penstock.recipes.hardware import cores_allowed, cpu_model, gpu_name
from penstock.recipes.timm_input import timm_defaults

FILE = Path("machine.toml")
NO_GPU = "none"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The facts on which the fastest settings depend. cores: those that a process may use. ranks: on the machine."""

    cpu: str = ""
    cores: float = 0.0
    gpu: str = NO_GPU
    ranks: int = 1


@dataclass(frozen=True, kw_only=True)
class MachineFile:
    """The contents of the file."""

    machine: Machine = field(default_factory=Machine)
    data: DataConfig = field(default_factory=DataConfig)


def this_machine(device: str) -> Machine:
    """This machine. `device`: the commands' option; with "cpu" the machine's GPU is ignored."""
    gpu = None if device == "cpu" else gpu_name()
    return Machine(
        cpu=cpu_model() or "",
        cores=float(cores_allowed() or 0),
        gpu=gpu or NO_GPU,
        ranks=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
    )


def load_recipe(
    recipe_file: Path, overrides: tuple[str, ...], *, device: str = "auto", use: bool = True, path: Path = FILE
) -> tuple[Recipe, str]:
    """The recipe, with the settings of machine.toml if it is from this machine, and with the input images of a timm
    network (`recipes.timm_input`). The string tells the user what was used from each, or why nothing was; it is "" if
    there is no machine.toml and no timm network.

    Raises ValueError as `config.load_config` and `timm_defaults`, and for a machine.toml that is malformed or has other
    settings.
    """
    defaults, of_timm = timm_defaults(config.given_values(Recipe, recipe_file, overrides))
    recipe = config.load_config(Recipe, recipe_file, overrides, defaults)  # reports the recipe's own errors
    settings, of_machine = _of_machine(path, overrides, device, use)
    if settings:
        recipe = config.load_config(Recipe, recipe_file, (*settings, *overrides), defaults)
    return recipe, "\n".join(filter(None, (of_machine, of_timm)))


def _of_machine(path: Path, overrides: tuple[str, ...], device: str, use: bool) -> tuple[list[str], str]:
    """The settings used from machine.toml, in the form of `--set`, and the line about them."""
    if not path.exists():
        return [], ""
    if not use:
        return [], f"{path}: not used (--no-machine-config)"
    machine, given = _read(path)
    differences = _differences(machine, this_machine(device))
    if differences:
        return [], f"{path}: not used, it is from another machine ({differences})"
    overridden = {override.partition("=")[0].strip() for override in overrides}
    taken = [setting for setting in given if setting.partition("=")[0] not in overridden]
    return taken, f"{path}: {', '.join(taken) or 'not used, --set gives all of its settings'}"


def _read(path: Path) -> tuple[Machine, list[str]]:
    """The machine in the file, and the file's settings in the form of `--set`."""
    try:
        found = config.load_config(MachineFile, path)
    except ValueError as error:
        named = str(error) if str(path) in str(error) else f"{path}: {error}"
        raise ValueError(f"{named}; correct or remove it, or use --no-machine-config") from None
    table = tomllib.loads(path.read_text(encoding="utf-8")).get("data", {})
    for name in table:
        if name not in ONLY_SPEED:
            raise ValueError(
                f"{path}: data.{name} may change the result; only {', '.join(ONLY_SPEED)} can be here; move it to a "
                "recipe"
            )
    return found.machine, [f"data.{name}={json.dumps(value)}" for name, value in table.items()]


def _differences(there: Machine, here: Machine) -> str:
    return ", ".join(
        f"{one.name} {getattr(there, one.name)} there, {getattr(here, one.name)} here"
        for one in fields(Machine)
        if getattr(there, one.name) != getattr(here, one.name)
    )
