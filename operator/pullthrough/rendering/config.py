"""The registry's configuration file.

`proxy.ttl` and `storage.delete.enabled` are set both or neither: a ttl without the delete switch drops every entry at
its expiry and keeps the data (v3.1.1:registry/proxy/scheduler/scheduler.go:196-204). Series 2.8 has no ttl setting and
refuses nothing there, but keys beside a storage driver must be known to it (v2.8.2:configuration.go), so only common
ones are used.
"""

from __future__ import annotations

import functools

import jinja2

from pullthrough.models import constants
from pullthrough.models.cache import GcMode, PullThroughCache, Series
from pullthrough.rendering.roll import Roll


def render(cache: PullThroughCache, roll: Roll) -> str:
    """The configuration as YAML text; the same input gives the same bytes."""
    collects = roll.mode is GcMode.ENABLED
    return _template().render(
        storage_path=constants.STORAGE_PATH,
        collects=collects,
        address=f":{constants.REGISTRY_PORT}",
        debug_address=f"127.0.0.1:{constants.REGISTRY_DEBUG_PORT}",
        series=cache.spec.registry.series.value,
        upstream_url=cache.upstream_url,
        ttl=roll.ttl if collects and cache.spec.registry.series is Series.V3 else "0s",
    )


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pullthrough.rendering"),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701 -- YAML, and every value passes tojson
        keep_trailing_newline=True,
        trim_blocks=True,
    )
    return environment.get_template("config.yml.j2")
