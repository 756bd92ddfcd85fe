"""`sweep --online` and the keeper with its backstop, beside a registry under concurrent pulls.

What is promised for something that is asked for in the very instant of its deletion: no wrong or truncated body, and a pull
that failed succeeds on one retry. The control removes data before its links: these pulls see what that does.
The scheduler's own deletions would cut bodies too (link and data at once), so nothing of its own expires here.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.registry.pulling import pull_beside, push_new
from tests.registry.servers import Registry, Series, pull_all

pytestmark = pytest.mark.registry

SECONDS = 30
CONTROL_SECONDS = 10


def test_online_removals_give_no_wrong_body_and_failed_pulls_succeed_on_one_retry(
    series: Series, upstream: Registry, make_cache: Callable[..., Registry]
) -> None:
    push_new(upstream.url)
    cache = make_cache("cache", ttl="1h")
    pull_all(cache)
    seen = pull_beside(cache.url, cache.storage, SECONDS, "keep", "sweep")
    print(f"{series.version}: {seen.attempts}, {len(seen.failures)} failed once; {seen.removed}")
    assert seen.wrong_bodies == []
    assert [str(failure) for failure in seen.failed_retries] == []
    # That it was about something.
    kept, swept = seen.removed["keep"], seen.removed["sweep"]
    assert kept["orphan"] > 3 and kept.get("expired", 0) > 0 and kept["appeared"] > 3, kept
    assert swept.get("orphan", 0) + swept.get("payload", 0) > 0, swept
    assert min(seen.attempts.values()) > 5 and seen.attempts["blobs"] > 100, seen.attempts
    pull_all(cache)


def test_the_control_that_removes_data_first_is_seen(
    series: Series, upstream: Registry, make_cache: Callable[..., Registry]
) -> None:
    push_new(upstream.url)
    cache = make_cache("cache", ttl="1h")
    pull_all(cache)
    for _ in range(8):
        seen = pull_beside(cache.url, cache.storage, CONTROL_SECONDS, "reckless")
        print(f"{series.version}: {seen.attempts}, {len(seen.failures)} failed; {seen.removed}")
        if seen.wrong_bodies:
            return
    pytest.fail("these pulls cannot see what they are for")
