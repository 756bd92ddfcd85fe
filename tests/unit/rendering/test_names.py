"""Names and labels: what they promise about their length and form, for every name that the CRD admits.

What contributes: the cache's name (the CRD's rule), the ordinal, a configuration's content, a request and its attempt.
"""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from pullthrough.models import cache as resource
from pullthrough.models import constants
from pullthrough.rendering import labels, names
from tests import builders

CACHES = st.from_regex(resource.NAME_PATTERN, fullmatch=True)
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
LONGEST_LABEL = 63
REVISION = "-0123456789"
"""What a StatefulSet's controller appends to its name for a label of its pods."""
POD_SUFFIX = "-abcde"
"""What a Job's controller appends for its pods."""


def is_label(name: str) -> bool:
    return len(name) <= LONGEST_LABEL and LABEL.fullmatch(name) is not None


@settings(deadline=None, max_examples=50)
@given(CACHES)
def test_services_are_dns_labels_that_start_with_a_letter(cache: str) -> None:
    for name in (names.service(cache), names.member(cache, 0)):
        assert is_label(name) and name[0].isalpha()


@settings(deadline=None, max_examples=50)
@given(CACHES, st.integers(0, 99))
def test_a_stateful_sets_pods_can_carry_its_revision_as_a_label(cache: str, ordinal: int) -> None:
    assert is_label(names.member(cache, ordinal) + REVISION)
    assert is_label(names.pod(cache, ordinal))


@settings(deadline=None, max_examples=50)
@given(CACHES, st.text())
def test_a_configuration_is_named_by_its_content(cache: str, content: str) -> None:
    name = names.config_map(cache, content)
    assert is_label(name) and len(name) <= 58
    assert name == names.config_map(cache, content)
    assert name != names.config_map(cache, content + " ")


@settings(deadline=None, max_examples=50)
@given(CACHES, st.from_regex("[0-9a-f]{16}", fullmatch=True), st.integers(1, 9))
def test_a_job_and_its_pods_have_names_that_are_labels(
    cache: str, request: str, attempt: int
) -> None:
    assert is_label(names.migration_job(cache, 0, request, attempt) + POD_SUFFIX)


@settings(deadline=None, max_examples=50)
@given(CACHES, st.from_regex("[0-9a-f]{16}", fullmatch=True), st.integers(1, 9_999))
def test_a_job_of_many_attempts_still_has_a_name_that_is_a_label(
    cache: str, request: str, attempt: int
) -> None:
    assert is_label(names.migration_job(cache, 0, request, attempt))


@settings(deadline=None, max_examples=50)
@given(CACHES)
def test_label_values_are_legal_whatever_the_cache_is_called(name: str) -> None:
    raw = builders.cache_raw()
    raw["metadata"]["name"] = name
    cache = resource.PullThroughCache.parse(raw)
    for value in labels.of(cache, constants.COMPONENT_REGISTRY, 0).values():
        assert len(value) <= LONGEST_LABEL and re.fullmatch(
            r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?", value
        )


def test_a_migrations_pod_is_selected_by_no_service() -> None:
    cache = builders.cache()
    migration = labels.of(cache, constants.COMPONENT_MIGRATION, 0)
    registry = labels.of(cache, constants.COMPONENT_REGISTRY, 0)
    for member in (None, 0):
        selector = labels.registry_selector(cache, member).items()
        assert selector <= registry.items()
        assert not selector <= migration.items()
