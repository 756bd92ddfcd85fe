"""Settings from the environment: what is missing or wrong is named by its variable."""

from __future__ import annotations

import pytest

from pullthrough import settings
from pullthrough.models.settings import KeeperSettings
from pullthrough.settings import SettingsError

LEAST = {"PULLTHROUGH_IMAGE": "image:1", "PULLTHROUGH_NAMESPACE": "system"}


def test_the_least_that_is_needed_gives_the_defaults_of_the_models() -> None:
    read = settings.from_environment({**LEAST, "PULLTHROUGH_LEASE": ""})
    assert read.planning.image == "image:1"
    assert read.planning.keeper == KeeperSettings()
    assert (read.namespace, read.lease) == ("system", "pullthrough-operator")
    assert (read.listen_host, read.listen_port) == ("::", 8080)


def test_every_variable_is_read() -> None:
    more = {
        "IMAGE_PULL_POLICY": "Never",
        "REGISTRY_IMAGE_V3": "r:3",
        "REGISTRY_IMAGE_V2": "r:2",
        "KEEPER_SWEEP_INTERVAL": "1s",
        "KEEPER_MINIMUM_AGE": "2s",
        "KEEPER_UPLOAD_AGE": "3s",
        "KEEPER_DATA_DELAY": "4s",
        "KEEPER_STATE_INTERVAL": "5s",
        "KEEPER_BACKSTOP_MARGIN": "6s",
        "KEEPER_PROBE_INTERVAL": "7s",
        "KEEPER_RATE": "8",
        "MIGRATION_DEADLINE": "9m",
        "PROBE_FRESHNESS": "10m",
        "LEASE": "mine",
        "LISTEN": "[::1]:9090",
    }
    read = settings.from_environment(
        {**LEAST, **{f"PULLTHROUGH_{name}": value for name, value in more.items()}}
    )
    keeper = KeeperSettings(
        sweep_interval="1s",
        minimum_age="2s",
        upload_age="3s",
        data_delay="4s",
        state_interval="5s",
        backstop_margin="6s",
        probe_interval="7s",
        rate=8,
    )
    assert read.planning.keeper == keeper
    assert read.planning.registry_images == {"v3": "r:3", "v2": "r:2"}
    assert read.planning.image_pull_policy == "Never"
    assert (read.planning.migration_deadline, read.planning.probe_freshness) == ("9m", "10m")
    assert (read.lease, read.listen_host, read.listen_port) == ("mine", "::1", 9090)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("IMAGE", " "),
        ("NAMESPACE", ""),
        ("IMAGE_PULL_POLICY", "Sometimes"),
        ("KEEPER_RATE", "0"),
        ("KEEPER_RATE", "fast"),
        ("KEEPER_MINIMUM_AGE", "1d"),
        ("MIGRATION_DEADLINE", "0s"),
        ("MIGRATION_DEADLINE", "-1h"),
        ("LISTEN", "8080"),
        ("LISTEN", "0.0.0.0:70000"),
    ],
)
def test_a_wrong_value_is_named_by_its_variable(name: str, value: str) -> None:
    variable = f"PULLTHROUGH_{name}"
    with pytest.raises(SettingsError) as caught:
        settings.from_environment({**LEAST, variable: value})
    assert str(caught.value).startswith(f"{variable} is ")
