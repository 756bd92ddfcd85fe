"""The rest of what lies on a storage: uploads, temporary files, torn manifests, emptied directories,
things that no registry puts there.

Lists every directory of the known layout once, and nothing below what is foreign. All of it is
noted in a Survey that has read artifacts, data and tags before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

from pullthrough.storage import canary, inventory, layout
from pullthrough.storage.errors import StorageUnreadable
from pullthrough.storage.store import Store
from pullthrough.storage.survey import (
    DIRECTORY,
    LARGEST_PAYLOAD,
    Leak,
    Progress,
    Survey,
    ignored,
    note_file,
    read_artifacts,
    read_data,
    read_tags,
)

_OF_REPOSITORY = frozenset({layout.LAYERS, "_manifests", layout.UPLOADS})
_OF_TAG = frozenset({"current", "index"})


def read_all(
    store: Store, survey: Survey | None = None, progress: Progress | None = None
) -> Survey:
    """Everything that there is to know of a storage but its TTL state. Raises StorageUnreadable."""
    survey = Survey() if survey is None else survey
    read_artifacts(store, survey, progress)
    read_data(store, survey, progress)
    read_tags(store, survey)
    _read_rest(store, survey, progress)
    return survey


def _read_rest(store: Store, survey: Survey, progress: Progress | None) -> None:
    _linked_data(store, survey)
    for name in _listed(store.names, survey, layout.OURS):
        if name.endswith(layout.TEMPORARY):
            note_file(store, survey, Leak.TEMPORARY, f"{layout.OURS}/{name}")
    used: set[str] = set()
    for repository in sorted(inventory.repositories(store, ignored), reverse=True):
        if repository == canary.REPOSITORY:
            used.add(repository.rpartition("/")[0])
            continue
        # Children sort after their parents, so that here they have been seen.
        if _repository(store, survey, repository, progress) or repository in used:
            used.add(repository)
            used.add(repository.rpartition("/")[0])
        else:
            survey.note(Leak.EMPTIED, layout.repository_path(repository), DIRECTORY)
    _blobs(store, survey, progress)


def _linked_data(store: Store, survey: Survey) -> None:
    """Links to no data, and manifests whose bytes are not their digest's (facts: class 27)."""
    manifests: dict[str, set[str]] = {}
    for key, kind in survey.artifacts.items():
        digest = key[key.rindex("@") + 1 :]
        size = survey.sizes.get(digest)
        if size is None:
            if digest not in survey.hidden:
                # The blob's directory is there and its data is not.
                artifact = layout.Artifact(key[: key.rindex("@")], digest, kind)
                survey.note(Leak.DANGLING, layout.link_directory(artifact), 0, digest)
            continue
        is_manifest = kind is layout.Kind.MANIFEST or key in survey.either_kind
        if is_manifest and 0 < size <= LARGEST_PAYLOAD:
            directory, _, digits = layout.blob_directory(digest).rpartition("/")
            manifests.setdefault(directory, set()).add(digits)
    for directory, names in sorted(manifests.items()):
        algorithm = directory.split("/")[-2]
        sizes = {name: survey.sizes[f"{algorithm}:{name}"] for name in sorted(names)}
        limit = max(sizes.values()) + 1
        for name, content in store.read_each(directory, sizes, layout.DATA, limit):
            if isinstance(content, StorageUnreadable):
                raise content
            if content is not None and hashlib.new(algorithm, content).hexdigest() != name:
                digest = f"{algorithm}:{name}"
                survey.note(Leak.TORN, layout.blob_path(digest), sizes[name], digest)


def _repository(store: Store, survey: Survey, repository: str, progress: Progress | None) -> bool:
    """Look into a repository's own directories; whether any file is in them."""
    base = layout.repository_path(repository)
    children = set(_listed(store.directories, survey, base))
    has_files = False
    for name in _listed(store.names, survey, base):
        if name not in children or (name.startswith("_") and name not in _OF_REPOSITORY):
            has_files = True
            _stray(store, survey, f"{base}/{name}")
    if layout.LAYERS in children:
        has_files |= _links(store, survey, f"{base}/{layout.LAYERS}", progress)
    if "_manifests" in children:
        parts = set(_listed(store.names, survey, f"{base}/_manifests"))
        for name in parts - {"revisions", "tags"}:
            has_files = True
            _stray(store, survey, f"{base}/_manifests/{name}")
        has_files |= _links(store, survey, f"{base}/{layout.REVISIONS}", progress)
        has_files |= _tags(store, survey, repository)
    if layout.UPLOADS in children:
        has_files |= _uploads(store, survey, f"{base}/{layout.UPLOADS}")
    return has_files


def _links(store: Store, survey: Survey, base: str, progress: Progress | None) -> bool:
    has_files = False
    for algorithm in _listed(store.names, survey, base):
        path = f"{base}/{algorithm}"
        if algorithm not in layout.ALGORITHMS:
            has_files = True
            _stray(store, survey, path)
            continue
        names = _listed(store.names, survey, path)
        digests = layout.hex_names(algorithm, names)
        if len(digests) != len(names):
            has_files = True
            for name in names:
                if not layout.is_hex(algorithm, name):
                    _stray(store, survey, f"{path}/{name}")
        has_files |= _leaves(store, survey, path, digests, layout.LINK)
        if progress is not None:
            progress("directories listed", len(names))
    return has_files


def _leaves(store: Store, survey: Survey, base: str, digests: list[str], belongs: str) -> bool:
    """Directories for one file each; whether any holds anything."""
    has_files = False
    expected = [belongs]
    for digest, below in store.names_each(base, digests):
        if below == expected:
            has_files = True
        else:
            has_files |= _leaf(store, survey, f"{base}/{digest}", belongs, below)
    return has_files


def _leaf(
    store: Store,
    survey: Survey,
    path: str,
    belongs: str,
    below: list[str] | StorageUnreadable | None,
) -> bool:
    """A directory for one file; whether it holds anything. Empty ones were noted before."""
    names = _accepted(survey, below)
    if names is None:
        # A file, or gone meanwhile.
        _stray(store, survey, path)
        return store.facts(path) is not None
    if names != [belongs]:
        is_linkless = belongs == layout.LINK and belongs not in names
        for name in names:
            # Beside no link they have been noted with the links; not so for tags.
            is_noted = is_linkless and name.endswith(layout.TEMPORARY) and "/tags/" not in path
            if name != belongs and not is_noted:
                _stray(store, survey, f"{path}/{name}")
    return bool(names)


def _tags(store: Store, survey: Survey, repository: str) -> bool:
    base = f"{layout.repository_path(repository)}/{layout.TAGS}"
    has_files = False
    for tag in sorted(_listed(store.names, survey, base)):
        path = f"{base}/{tag}"
        parts = _listed_if_directory(store.names, survey, path)
        if parts is None:
            has_files = True
            _stray(store, survey, path)
            continue
        strange = [name for name in parts if name not in _OF_TAG]
        for name in strange:
            _stray(store, survey, f"{path}/{name}")
        has_links = bool(strange)
        has_links |= _leaves(store, survey, path, ["current"], layout.LINK)
        for digest, below in _index(store, survey, f"{path}/index"):
            has_links |= _index_link(store, survey, layout.key(repository, digest), below)
        if not has_links:
            survey.note(Leak.EMPTIED, path, DIRECTORY)
        has_files |= has_links
    return has_files


def _index_link(store: Store, survey: Survey, key: str, path: str) -> bool:
    """One of the manifests that a tag has pointed at; whether any file is there."""
    names = _listed(store.names, survey, path)
    link = f"{path}/{layout.LINK}"
    if not names:
        survey.note(Leak.EMPTIED, path, DIRECTORY)
    elif layout.LINK in names and key not in survey.artifacts:
        survey.note(Leak.DEAD_TAG, link)
    elif layout.LINK in names and survey.findings is not None:
        survey.tags.append((link, key))
    for name in names:
        if name != layout.LINK:
            _stray(store, survey, f"{path}/{name}")
    return bool(names)


def _index(store: Store, survey: Survey, base: str) -> Iterable[tuple[str, str]]:
    for algorithm in _listed(store.names, survey, base):
        for digits in _listed(store.names, survey, f"{base}/{algorithm}"):
            if layout.is_hex(algorithm, digits):
                yield f"{algorithm}:{digits}", f"{base}/{algorithm}/{digits}"
            else:
                _stray(store, survey, f"{base}/{algorithm}/{digits}")


def _uploads(store: Store, survey: Survey, base: str) -> bool:
    has_files = False
    for upload in _listed(store.names, survey, base):
        path = f"{base}/{upload}"
        if _listed_if_directory(store.names, survey, path) is None:
            has_files = True
            _stray(store, survey, path)
            continue
        files = _files_below(store, survey, path)
        has_files |= bool(files)
        if not files:
            survey.note(Leak.EMPTIED, path, DIRECTORY)
        for file in files:
            note_file(store, survey, Leak.UPLOAD, file)
    return has_files


def _files_below(store: Store, survey: Survey, path: str, depth: int = 4) -> list[str]:
    """Files of an upload; one that was pushed has `hashstates/<algorithm>/<offset>` too."""
    directories = set(_listed(store.directories, survey, path))
    files = []
    for name in _listed(store.names, survey, path):
        below = f"{path}/{name}"
        if name in directories and depth:
            files += _files_below(store, survey, below, depth - 1)
        else:
            files.append(below)
    return files


def _blobs(store: Store, survey: Survey, progress: Progress | None) -> None:
    for algorithm in _listed(store.names, survey, layout.BLOBS):
        base = f"{layout.BLOBS}/{algorithm}"
        if algorithm not in layout.ALGORITHMS:
            _stray(store, survey, base)
            continue
        for first in _listed(store.names, survey, base):
            names = _listed_if_directory(store.names, survey, f"{base}/{first}")
            if names is None:
                _stray(store, survey, f"{base}/{first}")
                continue
            if not names:
                survey.note(Leak.EMPTIED, f"{base}/{first}", DIRECTORY)
            digests = [name for name in layout.hex_names(algorithm, names) if name[:2] == first]
            if len(digests) != len(names):
                for name in set(names).difference(digests):
                    _stray(store, survey, f"{base}/{first}/{name}")
            _leaves(store, survey, f"{base}/{first}", digests, layout.DATA)
            if progress is not None:
                progress("directories listed", len(names))


def _stray(store: Store, survey: Survey, path: str) -> None:
    """Something beside what belongs there: a temporary file, or nothing of the registry's."""
    is_temporary = path.endswith(layout.TEMPORARY)
    note_file(store, survey, Leak.TEMPORARY if is_temporary else Leak.FOREIGN, path)


def _listed(listing: Callable[[str], list[str] | None], survey: Survey, path: str) -> list[str]:
    """Names in a directory, none if there is no such directory."""
    return _listed_if_directory(listing, survey, path) or []


def _listed_if_directory(
    listing: Callable[[str], list[str] | None], survey: Survey, path: str
) -> list[str] | None:
    try:
        return listing(path)
    except StorageUnreadable as error:
        return _accepted(survey, error)


def _accepted(survey: Survey, answer: list[str] | StorageUnreadable | None) -> list[str] | None:
    """What was listed; nothing for a symbolic link where that may be."""
    if not isinstance(answer, StorageUnreadable):
        return answer
    # The links' own walk has counted or raised it already if anything hangs on it.
    if answer.symbolic_link is None or not survey.is_tolerant:
        raise answer
    survey.note_once(Leak.SYMBOLIC_LINK, answer.symbolic_link)
    return []
