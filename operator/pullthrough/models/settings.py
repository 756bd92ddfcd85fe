"""The operator's own settings, as values; `pullthrough.settings` reads them from the environment."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class KeeperSettings:
    """Ages and intervals of the keeper, as Go durations. The defaults are the safe ones; demonstrations shorten them."""

    sweep_interval: str = "10m"
    minimum_age: str = "1h"
    """Unreachable data and bad links younger than this are left alone."""
    upload_age: str = "24h"
    """The same for uploads and temporary files."""
    data_delay: str = "60s"
    """Between removing a link and removing the data that nothing links to any more."""
    state_interval: str = "2m"
    """Between the two good reads of the TTL state that make an artifact count as uncovered."""
    backstop_margin: str = "10m"
    """An uncovered artifact goes this long after its ttl."""
    probe_interval: str = "30s"
    rate: int = 50
    """Deletions per second at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a pass needs to know about the operator itself."""

    image: str
    """The operator's own image: runs prepare, keep and migrate."""
    image_pull_policy: str = "IfNotPresent"
    registry_images: dict[str, str] = field(
        default_factory=lambda: {
            "v3": "docker.io/library/registry:3.1.2",
            "v2": "docker.io/library/registry:2.8.2",
        }
    )
    """Default registry image by series."""
    keeper: KeeperSettings = field(default_factory=KeeperSettings)
    migration_deadline: str = "1h"
    """activeDeadlineSeconds of a migration Job."""
    probe_freshness: str = "2m"
    """How old the keeper's last successful probe of the upstream may be when a member is rolled."""
    migration_priority_class: str = ""
    """PriorityClass of migration Jobs; empty: the cluster's default."""
