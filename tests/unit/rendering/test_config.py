"""The registry's configuration, parsed and compared as data.

What contributes: the series, the mode, the ttl, the upstream's address.
"""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pullthrough.models.cache import GcMode, PullThroughCache
from pullthrough.rendering import config
from pullthrough.rendering.roll import Roll
from tests import builders


def roll(mode: GcMode, ttl: str = "168h") -> Roll:
    return Roll(mode=mode, ttl=ttl, keeper_image="k")


def rendered(mode: GcMode, series: str = "v3", ttl: str = "168h", **upstream: Any) -> Any:
    spec: dict[str, Any] = {
        "registry": {"series": series},
        "gc": {"ttl": ttl},
        "upstream": upstream,
    }
    return yaml.safe_load(config.render(builders.cache(**spec), roll(mode, ttl)))


V3_OFF = {
    "version": 0.1,
    "log": {"level": "info", "accesslog": {"disabled": True}},
    "storage": {
        "filesystem": {"rootdirectory": "/var/lib/registry"},
        "delete": {"enabled": False},
        "maintenance": {
            "uploadpurging": {"enabled": True, "age": "168h", "interval": "24h", "dryrun": False}
        },
    },
    "http": {
        "addr": ":5000",
        "draintimeout": "20s",
        "debug": {"addr": "127.0.0.1:5001", "prometheus": {"enabled": True, "path": "/metrics"}},
    },
    "proxy": {"remoteurl": "https://registry-1.docker.io", "ttl": "0s"},
}


def test_series_v3_with_gc_off_schedules_and_deletes_nothing() -> None:
    assert rendered(GcMode.DISABLED) == V3_OFF


def test_series_v3_with_gc_on_has_the_ttl_and_the_delete_switch() -> None:
    wanted = builders.merged(
        V3_OFF, {"storage": {"delete": {"enabled": True}}, "proxy": {"ttl": "90m"}}
    )
    assert rendered(GcMode.ENABLED, ttl="90m") == wanted


@pytest.mark.parametrize("mode", list(GcMode))
def test_series_v2_has_only_the_delete_switch_and_no_setting_of_3(mode: GcMode) -> None:
    wanted = builders.merged(V3_OFF, {"http": {"draintimeout": None}, "proxy": {"ttl": None}})
    wanted["storage"]["delete"]["enabled"] = mode is GcMode.ENABLED
    assert rendered(mode, series="v2") == wanted


@pytest.mark.parametrize("mode", list(GcMode))
def test_ttl_and_delete_switch_are_set_both_or_neither(mode: GcMode) -> None:
    found = rendered(mode)
    assert (found["proxy"]["ttl"] != "0s") is found["storage"]["delete"]["enabled"]
    assert isinstance(found["storage"]["delete"]["enabled"], bool), "a string starts and means off"
    assert isinstance(found["proxy"]["ttl"], str), "a bare number would be nanoseconds"


def test_there_is_never_a_cache_of_blob_descriptors() -> None:
    for mode in GcMode:
        assert "cache" not in rendered(mode)["storage"]


def test_directly_under_storage_stands_nothing_that_2_8_takes_for_a_second_driver() -> None:
    assert set(rendered(GcMode.ENABLED, series="v2")["storage"]) == {
        "filesystem",
        "delete",
        "maintenance",
    }


def test_the_upstreams_own_address_is_used() -> None:
    found = rendered(GcMode.DISABLED, url="https://mirror.example.org:5000")
    assert found["proxy"]["remoteurl"] == "https://mirror.example.org:5000"
    assert rendered(GcMode.DISABLED, host="ghcr.io")["proxy"]["remoteurl"] == "https://ghcr.io"


def test_the_same_input_gives_the_same_bytes_and_gc_other_bytes() -> None:
    cache = builders.cache()
    off, on = (config.render(cache, roll(mode)) for mode in (GcMode.DISABLED, GcMode.ENABLED))
    assert config.render(cache, roll(GcMode.DISABLED)) == off != on


def test_an_unused_ttl_does_not_change_the_file() -> None:
    cache = builders.cache()
    assert config.render(cache, roll(GcMode.DISABLED, "1h")) == config.render(
        cache, roll(GcMode.DISABLED, "2h")
    )


ASCII = st.characters(codec="ascii", exclude_characters="\x7f")


@settings(deadline=None, max_examples=50)
@given(st.text(ASCII, max_size=60))
def test_no_value_can_break_out_of_its_place(text: str) -> None:
    """Even one that no rule of the CRD would let in: quotes, line ends, braces, comment signs."""
    cache = builders.cache()
    upstream = cache.spec.upstream.model_copy(update={"url": text})
    forged: PullThroughCache = cache.model_copy(
        update={"spec": cache.spec.model_copy(update={"upstream": upstream})}
    )
    found = yaml.safe_load(config.render(forged, roll(GcMode.DISABLED)))
    assert found["proxy"]["remoteurl"] == forged.upstream_url
    assert found["storage"] == V3_OFF["storage"]
