"""What decides how a member's registry runs, beside the spec: the mode it is in and how it came there."""

from __future__ import annotations

from dataclasses import dataclass

from pullthrough.models.cache import GcMode


@dataclass(frozen=True, slots=True, kw_only=True)
class Roll:
    """One member's way of running. `mode` may differ from the spec's while a migration is under way."""

    mode: GcMode
    ttl: str
    """Go duration, as written in the spec."""
    keeper_image: str
    migration: str | None = None
    """uid of the Job whose state `prepare` installs."""
    collected_by: str | None = None
    """RFC 3339; by then all that was cached before the switch is gone."""
    verified: str | None = None
    """uid of the migration under which the pod was seen ready."""
    migration_seconds: str | None = None
    """How long the migration Job took, in whole seconds."""
    prepared_again: str | None = None
    """RFC 3339 time of the last restart that the keeper asked for."""
    proven: str | None = None
    """Template under which the canary was seen to expire."""
    adopts_unmarked: bool = False
    """`prepare` may take over content without a marker."""
    reverted: str | None = None
    """``<cache generation>/<count>/<RFC 3339>`` of switches taken back."""
