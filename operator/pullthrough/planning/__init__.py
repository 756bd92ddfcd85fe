"""The decision of a pass: `plan(cache, snapshot, settings)`. Pure: no I/O, no clock, nothing remembered."""

from pullthrough.planning.planner import plan

__all__ = ["plan"]
