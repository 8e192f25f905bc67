"""The settings of networks, losses and the rest: their names match the registries in the code."""

from typing import get_args, get_type_hints

import pytest
import timm
import torchvision

from penstock.model.config import LossConfig, OptimizerConfig, ScheduleConfig
from penstock.model.losses import LOSSES
from penstock.model.names import OWN_NAMES, check_network, timm_names, torchvision_names
from penstock.model.networks import OWN_NETWORKS, list_networks
from penstock.model.optim import OPTIMIZERS
from penstock.model.schedule import DECAYS


@pytest.mark.parametrize(
    ("section", "registry"), [(LossConfig, LOSSES), (OptimizerConfig, OPTIMIZERS), (ScheduleConfig, DECAYS)]
)
def test_a_sections_names_are_the_registrys(section: type, registry: dict[str, object]) -> None:
    assert get_args(get_type_hints(section)["name"]) == tuple(registry)


def test_the_networks_names_are_read_without_torch() -> None:
    assert set(torchvision_names()) == set(torchvision.models.list_models(module=torchvision.models))
    assert set(OWN_NAMES) == set(OWN_NETWORKS)
    for name in list_networks():
        check_network(name)
    with pytest.raises(ValueError, match=r"unknown network 'resnet5O': did you mean resnet50"):
        check_network("resnet5O")


def test_timms_names_are_read_without_timm() -> None:
    assert set(timm_names()) == set(timm.list_models())
    for name in timm.list_models():
        check_network(f"timm/{name}")
    for name, hint in (
        ("timm/resnet5Od", r"did you mean timm/resnet50d"),
        ("timm/qqqqqq", r"timm.list_models\(\) lists all names"),
        ("timm/resnet50d.ra2_in1k", r'name = "timm/resnet50d", pretrained = "ra2_in1k"'),
        ("resnet50d", r"did you mean timm/resnet50d\?"),
    ):
        with pytest.raises(ValueError, match=rf"unknown network '{name}': .*{hint}"):
            check_network(name)
