"""The operator's settings, read once from the environment; every complaint names the variable.

| variable | meaning | default |
|---|---|---|
| PULLTHROUGH_IMAGE | the operator's own image, for prepare, keep and migrate | none: required |
| PULLTHROUGH_IMAGE_PULL_POLICY | Always, IfNotPresent or Never | IfNotPresent |
| PULLTHROUGH_REGISTRY_IMAGE_V3, _V2 | registry images of caches that name none | models/settings.py |
| PULLTHROUGH_KEEPER_* | SWEEP_INTERVAL, MINIMUM_AGE, UPLOAD_AGE, DATA_DELAY, STATE_INTERVAL, BACKSTOP_MARGIN, PROBE_INTERVAL (durations), RATE | models/settings.py |
| PULLTHROUGH_MIGRATION_DEADLINE | how long a migration Job may run | 1h |
| PULLTHROUGH_MIGRATION_PRIORITY_CLASS | PriorityClass of migration Jobs | the cluster's default |
| PULLTHROUGH_PROBE_FRESHNESS | how old a probe of the upstream may be at a roll | 2m |
| PULLTHROUGH_NAMESPACE | where the Lease is | none: required |
| PULLTHROUGH_LEASE | its name | pullthrough-operator |
| PULLTHROUGH_LISTEN | address and port of health and metrics | [::]:8080 |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pullthrough import durations
from pullthrough.models.settings import KeeperSettings, Settings

PREFIX: Final = "PULLTHROUGH_"
PULL_POLICIES: Final = ("Always", "IfNotPresent", "Never")


class SettingsError(Exception):
    """A variable is missing or says nothing sensible; the text names it and the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorSettings:
    """Everything the process `pullthrough run` is told from outside."""

    planning: Settings
    namespace: str
    lease: str
    listen_host: str
    listen_port: int


def from_environment(environment: Mapping[str, str]) -> OperatorSettings:
    """Read them; SettingsError for the first that will not do."""
    reader = _Reader(environment)
    default = Settings(image="")
    images = {
        series: reader.text(f"REGISTRY_IMAGE_{series.upper()}", image)
        for series, image in default.registry_images.items()
    }
    policy = reader.text("IMAGE_PULL_POLICY", default.image_pull_policy)
    if policy not in PULL_POLICIES:
        reader.refuse("IMAGE_PULL_POLICY", f"is {policy!r}; one of {', '.join(PULL_POLICIES)}")
    host, port = reader.address("LISTEN", "[::]:8080")
    return OperatorSettings(
        planning=Settings(
            image=reader.required("IMAGE", "set it to the image that the operator runs from"),
            image_pull_policy=policy,
            registry_images=images,
            keeper=_keeper(reader),
            migration_deadline=reader.duration("MIGRATION_DEADLINE", default.migration_deadline),
            probe_freshness=reader.duration("PROBE_FRESHNESS", default.probe_freshness),
            migration_priority_class=reader.text("MIGRATION_PRIORITY_CLASS", ""),
        ),
        namespace=reader.required("NAMESPACE", "set it to the namespace of the operator's pod"),
        lease=reader.text("LEASE", "pullthrough-operator"),
        listen_host=host,
        listen_port=port,
    )


def _keeper(reader: _Reader) -> KeeperSettings:
    default = KeeperSettings()
    values: dict[str, str] = {}
    for field in dataclasses.fields(KeeperSettings):
        if field.name != "rate":
            name = f"KEEPER_{field.name.upper()}"
            values[field.name] = reader.duration(name, getattr(default, field.name))
    return KeeperSettings(**values, rate=reader.count("KEEPER_RATE", default.rate))


class _Reader:
    """The environment under our prefix; an empty variable counts as not set, as charts write them."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def refuse(self, name: str, why: str) -> None:
        msg = f"{PREFIX}{name} {why}"
        raise SettingsError(msg)

    def text(self, name: str, default: str) -> str:
        return self._environment.get(PREFIX + name, "").strip() or default

    def required(self, name: str, remedy: str) -> str:
        value = self.text(name, "")
        if not value:
            self.refuse(name, f"is not set; {remedy}")
        return value

    def duration(self, name: str, default: str) -> str:
        value = self.text(name, default)
        try:
            parsed = durations.parse_go(value)
        except ValueError as error:
            self.refuse(name, f"is {value!r}: {error}; write it like 90s, 10m or 1h30m")
        else:
            if parsed.total_seconds() <= 0:
                self.refuse(name, f"is {value!r}; it must be longer than nothing")
        return value

    def count(self, name: str, default: int) -> int:
        value = self.text(name, str(default))
        if not value.isdecimal() or int(value) < 1:
            self.refuse(name, f"is {value!r}; a whole number of at least 1 is needed")
        return int(value)

    def address(self, name: str, default: str) -> tuple[str, int]:
        value = self.text(name, default)
        host, colon, port = value.rpartition(":")
        if not colon or not port.isdecimal() or int(port) > 65535:
            self.refuse(name, f"is {value!r}; write it like [::]:8080")
        return host.strip("[]") or "::", int(port)
