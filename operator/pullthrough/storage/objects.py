"""A Store in a bucket: the registry's own prefix on S3, Google Cloud Storage or Azure Blob Storage.

An object store differs from a directory in what it costs and in what it has:

* One listing, made when first asked and in parallel by prefix, answers names, directories, sizes,
  times, and what a link holds wherever its key and size leave no doubt. `refresh` forgets it.
* A listing answers for each path *once*. Who asks for the facts of a path again wants to know
  whether it changed, and gets a request; so does a path that the listing does not have. `read`
  always is a request. Own writes change the listing.
* There are no directories: one is there while something lies below it. Emptied link directories,
  a leak elsewhere, cannot exist here.
* Writes are whole or not at all, and conditional on what was read before; renaming is copying and
  removing.

Requests are counted by kind in `requests`: they are what such a storage costs.
"""

from __future__ import annotations

import bisect
import contextlib
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from datetime import UTC, datetime, timedelta
from functools import partial
from os import environ
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotModifiedError,
    NotSupportedError,
    PreconditionError,
)
from obstore.store import AzureStore, GCSStore, S3Store

from pullthrough.storage import layout
from pullthrough.storage.errors import StorageChanged, StorageNotWritable, StorageUnreadable
from pullthrough.storage.store import WHOLE, Facts

if TYPE_CHECKING:
    from obstore import ObjectMeta, PutResult, UpdateVersion
    from obstore.store import ClientConfig, RetryConfig

CONCURRENCY = 32
"""Requests under way at once."""
TIMEOUT = timedelta(seconds=30)
"""For a request: a page of a listing, a link, a small write."""
TIMEOUT_LARGE = timedelta(minutes=10)
"""For a body of more than LARGE bytes: a state of 500,000 entries has 128 MB."""
LARGE = 8 << 20
RETRIES = 4
RETRY_WITHIN = timedelta(seconds=60)
PAGES = {"s3": 1000, "gs": 1000, "az": 5000}
"""Keys in one answer of a listing."""
CURRENT = f"current/{layout.LINK}"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
REMEDIES = {
    "s3": "check the bucket, AWS_REGION, AWS_ENDPOINT_URL, the credentials (AWS_ACCESS_KEY_ID, a web"
    " identity or an instance role) and that they may list, read, write and delete below the prefix",
    "gs": "check the bucket, GOOGLE_APPLICATION_CREDENTIALS (or workload identity) and that the"
    " account may list, read, write and delete below the prefix",
    "az": "check the container, AZURE_STORAGE_ACCOUNT_NAME, the credentials and that they may list,"
    " read, write and delete below the prefix",
}
ENDPOINTS = (
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT",
    "GOOGLE_BASE_URL",
    "AZURE_STORAGE_ENDPOINT",
    "AZURE_ENDPOINT",
)
"""Variables that may name an endpoint without TLS."""
FAILURES = (BaseError, OSError, ValueError, NotImplementedError)
"""What obstore raises."""
UNSUPPORTED = (NotSupportedError, NotImplementedError)
CONDITION_FAILED = (AlreadyExistsError, NotModifiedError, PreconditionError)
SAID = re.compile("<Code>([^<]{1,100})</Code>")
NO_BUCKET = re.compile("NoSuchBucket|ContainerNotFound|bucket does not exist")

Client = S3Store | GCSStore | AzureStore


class _Object(NamedTuple):
    """A file in the listing. `is_told`: its facts were asked for, the next asking is a request."""

    size: int
    mtime: int
    tag: int
    is_told: bool = False


_Tree = dict[str, "_Object | _Tree"]
"""A directory: name -> file or directory."""


class ObjectStore:
    """See the module and Store. One thread uses it; it uses several."""

    def __init__(self, scheme: str, bucket: str, prefix: str) -> None:
        """Makes no request. `prefix` without slashes around it; empty is the bucket's root."""
        self.name = f"{scheme}://{bucket}/{prefix}".rstrip("/")
        self.requests: dict[str, int] = {}
        """Requests made, by kind: list, get, head, put, delete. Retries are not seen."""
        self._scheme = scheme
        self._client = _client(scheme, bucket, prefix, TIMEOUT)
        self._large = partial(_client, scheme, bucket, prefix, TIMEOUT_LARGE)
        self._page = PAGES[scheme]
        self._lock = Lock()
        self._tree: _Tree | None = None
        self._unlisted: set[str] = set()
        """Directories at the root of which nothing was asked yet."""
        self._versions: dict[str, UpdateVersion | None] = {}
        """Of what was read or written: what `replace` writes over. None: was not there."""

    @classmethod
    def open(cls, text: str) -> ObjectStore:
        """`s3://bucket/prefix`: looked at with one request, so that a bucket that is not there, or
        may not be listed, is an error and never an empty storage. Raises StorageUnreadable."""
        scheme, _, rest = text.partition("://")
        bucket, _, prefix = rest.partition("/")
        prefix = prefix.strip("/")
        if not bucket or any(part in {"", ".", ".."} for part in prefix.split("/") if prefix):
            msg = f"{text}: give {scheme}://BUCKET/PREFIX, the prefix being the rootdirectory"
            raise StorageUnreadable(msg)
        try:
            store = cls(scheme, bucket, prefix)
        except FAILURES as error:
            msg = f"{text}: {_short(error)}; {REMEDIES[scheme]}"
            raise StorageUnreadable(msg) from error
        store._root()
        return store

    def refresh(self) -> None:
        """See Store."""
        self._tree = None

    # -- questions -----------------------------------------------------------------------------

    def names(self, directory: str) -> list[str] | None:
        """See Store."""
        found = self._find(directory)
        return list(found) if isinstance(found, dict) else None

    def directories(self, directory: str) -> list[str] | None:
        """See Store."""
        found = self._find(directory)
        if not isinstance(found, dict):
            return None
        return [name for name, below in found.items() if isinstance(below, dict)]

    def read(self, path: str, limit: int = WHOLE) -> bytes | None:
        """See Store. Remembers what was read: `replace` then writes over exactly that."""
        try:
            with self._reading(path, "get"):
                found = self._client_for(self._size(path)).get(path)
                content = b"".join(_first(found.stream(), limit))
                self._versions[path] = _version(found.meta)
                return content
        except FileNotFoundError:
            self._versions[path] = None
            return None

    def read_each(
        self, directory: str, names: Iterable[str], leaf: str, limit: int
    ) -> Iterator[tuple[str, bytes | StorageUnreadable | None]]:
        """See Store. Only what key and size leave in doubt is read, several at once."""
        above = self._find(directory)
        algorithm = directory.rpartition("/")[2]
        answers: dict[str, bytes | None] = {}
        doubtful: list[str] = []
        wanted = list(names)
        for name in wanted:
            below = above.get(name) if isinstance(above, dict) else None
            found = _walk(below, leaf)
            if not isinstance(found, _Object):
                answers[name] = None
            elif (known := _content(algorithm, name, leaf, found.size, below)) is not None:
                answers[name] = known
            else:
                doubtful.append(name)
        read = self._read_in_parallel(f"{directory}/{{}}/{leaf}".format, doubtful, limit)
        for name in wanted:
            yield name, answers[name] if name in answers else read[name]

    def names_each(
        self, directory: str, names: Iterable[str]
    ) -> Iterator[tuple[str, list[str] | StorageUnreadable | None]]:
        """See Store: no request."""
        above = self._find(directory)
        for name in names:
            below = above.get(name) if isinstance(above, dict) else None
            yield name, list(below) if isinstance(below, dict) else None

    def facts_each(
        self, directory: str, names: Iterable[str], leaf: str
    ) -> Iterator[tuple[str, Facts | StorageUnreadable | None]]:
        """See Store."""
        for name in names:
            answer: Facts | StorageUnreadable | None
            try:
                answer = self.facts(f"{directory}/{name}/{leaf}")
            except StorageUnreadable as error:
                answer = error
            yield name, answer

    def facts(self, path: str) -> Facts | None:
        """See Store. The inode is a hash of the etag; ctime is mtime, for there is only one."""
        found = self._find(path)
        if isinstance(found, dict):
            return Facts(0, 0, 0, 0, is_directory=True)
        if found is None or found.is_told:
            found = self._look(path)
            self._put_in_tree(path, found)
        else:
            self._put_in_tree(path, found._replace(is_told=True))
        if found is None:
            return None
        return Facts(found.size, found.mtime, found.mtime, found.tag, is_directory=False)

    def free(self) -> int:
        """See Store: nothing is full here but somebody's purse."""
        return WHOLE

    # -- changes -------------------------------------------------------------------------------

    def replace(self, path: str, data: bytes) -> None:
        """One conditional write: over exactly what `read` found or found missing; over what is there
        now if it was not read. The server checks the bytes by their hash (S3) or TLS does.

        Raises StorageChanged if somebody else wrote meanwhile; their content stays.
        """
        before = self._versions[path] if path in self._versions else self._current(path)
        try:
            # A version without an etag (of files that another program laid there) allows no condition.
            self._put(path, data, "create" if before is None else before or "overwrite")
        except (*CONDITION_FAILED, FileNotFoundError) as error:
            # An answer can get lost: then the retry finds what the first attempt wrote.
            if self.read(path) != data:
                self._versions[path] = before
                raise self._changed(path, before) from error
        except UNSUPPORTED:
            # AWS_CONDITIONAL_PUT=disabled, for a server without: look once more, right before.
            if self._current(path) != before:
                raise self._changed(path, before) from None
            self._put(path, data, "overwrite")

    def make_directories(self, path: str) -> None:
        """See Store: nothing to do."""

    def create(self, path: str, data: bytes) -> None:
        """See Store. Raises StorageChanged if it exists."""
        self._versions[path] = None
        self.replace(path, data)

    def overwrite(self, path: str, data: bytes) -> None:
        """See Store; here it is whole and unconditional."""
        self._put(path, data, "overwrite")

    def rename(self, source: str, target: str) -> None:
        """Write the target (see `replace`), then remove the source. Ended in between both are there,
        and doing it again ends the same."""
        content = self.read(source)
        if content is None:
            msg = f"{self.name}/{source}: is not there, so it cannot become {target}"
            raise StorageNotWritable(msg)
        self.replace(target, content)
        self.unlink(source)

    def unlink(self, path: str) -> bool:
        """See Store. What the listing does not have is asked for: S3 removes nothing as gladly."""
        found = self._find(path)
        if isinstance(found, dict) or (found is None and self._look(path) is None):
            return False
        was_there = True
        try:
            with self._writing(path, "delete"):
                self._client.delete(path)
        except FileNotFoundError:
            was_there = False
        self._versions.pop(path, None)
        self._put_in_tree(path, None)
        return was_there

    def rmdir(self, path: str) -> bool:
        """See Store: what nothing lies below is not there."""
        return self._find(path) is None

    def sync_directory(self, path: str) -> None:
        """See Store: what was answered lasts."""

    # -- the listing ---------------------------------------------------------------------------

    def _root(self) -> _Tree:
        if self._tree is None:
            tree: _Tree = {}
            self._unlisted = set(self._list_level("", tree))
            self._tree = {**{name: {} for name in self._unlisted}, **tree}
        return self._tree

    def _find(self, path: str) -> _Object | _Tree | None:
        tree = self._root()
        top = path.partition("/")[0]
        if top in self._unlisted:
            # Not the whole bucket: with an empty prefix anything may lie beside the registry's.
            is_registry = top == layout.VERSION_2.partition("/")[0]
            self._list_all([layout.BLOBS, layout.REPOSITORIES] if is_registry else [top], tree)
            self._unlisted.discard(top)
        return _walk(tree, path)

    def _size(self, path: str) -> int:
        """What the listing says, if there is one."""
        found = None if self._tree is None else _walk(self._tree, path)
        return found.size if isinstance(found, _Object) else 0

    def _put_in_tree(self, path: str, found: _Object | None) -> None:
        """Make the listing say what is known now; directories come and go with what is in them."""
        tree = self._tree
        if tree is None or path.partition("/")[0] in self._unlisted:
            return
        if found is not None:
            _plant(tree, path, found)
        else:
            _uproot(tree, path)

    def _list_all(self, prefixes: Iterable[str], tree: _Tree) -> None:
        """Everything below these. Raises StorageUnreadable if any part cannot be listed; `tree` then
        is not marked as listed."""
        with ThreadPoolExecutor(CONCURRENCY) as pool:
            under_way = {pool.submit(self._list_below, prefix, tree) for prefix in prefixes}
            try:
                while under_way:
                    done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                    below = [prefix for future in done for prefix in future.result()]
                    under_way |= {pool.submit(self._list_below, each, tree) for each in below}
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _list_below(self, prefix: str, tree: _Tree) -> list[str]:
        """List a prefix page by page; or, once it looks as if listing what is below it in parallel
        takes less time, or as if nothing can be told, return the prefixes below instead. It takes
        at most about twice the time of the better way, and a small storage takes few requests."""
        children: list[str] | None = None
        for pages, page in enumerate(self._pages(prefix), start=1):
            with self._lock:
                for meta in page:
                    _plant(tree, meta["path"], _object(meta))
            if len(page) < self._page or not _is_splittable(prefix):
                continue
            if children is None:
                children = sorted(self._list_level(prefix))
            # Listings are in order nearly everywhere: how far is this one? Only time depends on it.
            passed = max(1, bisect.bisect(children, page[-1]["path"]))
            left = pages * (len(children) / passed - 1)
            rounds = len(children) / CONCURRENCY
            if children and (left > rounds or pages >= rounds):
                return children
        return []

    def _pages(self, prefix: str) -> Iterator[Sequence[ObjectMeta]]:
        is_empty = True
        with self._listing(prefix):
            for page in self._client.list(prefix, chunk_size=self._page):
                is_empty = False
                self._count("list")
                yield page
        if is_empty:
            self._count("list")

    def _list_level(self, prefix: str, tree: _Tree | None = None) -> list[str]:
        """The prefixes directly below; files directly below go into `tree`."""
        with self._listing(prefix):
            found = self._client.list_with_delimiter(prefix or None)
            below = list(found["common_prefixes"])
            objects = list(found["objects"])
            self._count("list", max(1, -(-(len(below) + len(objects)) // self._page)))
        if tree is not None:
            with self._lock:
                for meta in objects:
                    _plant(tree, meta["path"], _object(meta))
        return below

    # -- requests ------------------------------------------------------------------------------

    def _look(self, path: str) -> _Object | None:
        """One HEAD."""
        try:
            with self._reading(path, "head"):
                return _object(self._client.head(path))._replace(is_told=True)
        except FileNotFoundError:
            return None

    def _current(self, path: str) -> UpdateVersion | None:
        try:
            with self._reading(path, "head"):
                return _version(self._client.head(path))
        except FileNotFoundError:
            return None

    def _put(self, path: str, data: bytes, mode: Any) -> None:
        client = self._client_for(len(data))
        with self._writing(path, "put"):
            done = client.put(path, data, mode=mode, use_multipart=False)
        self._versions[path] = _version(done)
        # When it says that it was written is known only after asking, which the next facts do.
        self._put_in_tree(path, _Object(len(data), 0, _tag(done["e_tag"]), is_told=True))

    def _read_in_parallel(
        self, path_of: Callable[[str], str], names: list[str], limit: int
    ) -> Mapping[str, bytes | StorageUnreadable | None]:
        def read(name: str) -> bytes | StorageUnreadable | None:
            try:
                return self.read(path_of(name), limit)
            except StorageUnreadable as error:
                return error

        if len(names) < 2:
            return {name: read(name) for name in names}
        with ThreadPoolExecutor(min(CONCURRENCY, len(names))) as pool:
            return dict(zip(names, pool.map(read, names), strict=True))

    def _client_for(self, size: int) -> Client:
        return self._client if size <= LARGE else self._large()

    def _count(self, kind: str, times: int = 1) -> None:
        with self._lock:
            self.requests[kind] = self.requests.get(kind, 0) + times

    def _changed(self, path: str, before: UpdateVersion | None) -> StorageChanged:
        was = f"had the etag {before.get('e_tag')}" if before else "was not there"
        with contextlib.suppress(StorageUnreadable):
            now = self._look(path)
            is_ = "is gone" if now is None else f"has {now.size} bytes of {_when(now.mtime)}"
            was = f"{was}, and now {is_}"
        msg = (
            f"{self.name}/{path} was changed by somebody else meanwhile: it {was}. Nothing was"
            " written over it; see to it that no registry or other program writes there, then try"
            " again"
        )
        return StorageChanged(msg)

    @contextlib.contextmanager
    def _listing(self, prefix: str) -> Iterator[None]:
        """A listing has no "not there": a bucket that is not found is an error."""
        try:
            yield
        except FAILURES as error:
            raise self._unreadable(prefix, error) from error

    @contextlib.contextmanager
    def _reading(self, path: str, kind: str) -> Iterator[None]:
        """FileNotFoundError is an answer, unless it is the bucket that was not found."""
        self._count(kind)
        try:
            yield
        except FAILURES as error:
            if isinstance(error, FileNotFoundError) and not NO_BUCKET.search(str(error)):
                raise
            raise self._unreadable(path, error) from error

    @contextlib.contextmanager
    def _writing(self, path: str, kind: str) -> Iterator[None]:
        self._count(kind)
        try:
            yield
        except (*CONDITION_FAILED, *UNSUPPORTED):
            raise
        except FAILURES as error:
            if isinstance(error, FileNotFoundError) and not NO_BUCKET.search(str(error)):
                raise
            raise StorageNotWritable(self._sentence(path, error)) from error

    def _unreadable(self, path: str, error: Exception) -> StorageUnreadable:
        return StorageUnreadable(self._sentence(path, error))

    def _sentence(self, path: str, error: Exception) -> str:
        where = f"{self.name}/{path}" if path else self.name
        return f"{where}: {_short(error)}; {REMEDIES[self._scheme]}"


def _client(scheme: str, bucket: str, prefix: str, timeout: timedelta) -> Client:
    """Credentials, region and endpoint come from the environment and the machine, as for the clouds'
    own programs (but for their configuration files); an endpoint of http:// is meant."""
    allow_http = any(environ.get(name, "").startswith("http://") for name in ENDPOINTS)
    options: ClientConfig = {"connect_timeout": timedelta(seconds=5), "timeout": timeout}
    if allow_http:
        options["allow_http"] = True
    retries: RetryConfig = {"max_retries": RETRIES, "retry_timeout": RETRY_WITHIN}
    where = prefix or None
    match scheme:
        case "s3":
            # One DELETE per object: not every server of S3's protocol knows the other kind.
            return S3Store(
                bucket,
                prefix=where,
                client_options=options,
                retry_config=retries,
                disable_bulk_delete=True,
            )
        case "gs":
            return GCSStore(bucket, prefix=where, client_options=options, retry_config=retries)
        case _:
            return AzureStore(bucket, prefix=where, client_options=options, retry_config=retries)


def _walk(found: _Object | _Tree | None, path: str) -> _Object | _Tree | None:
    for part in path.split("/") if path else ():
        if not isinstance(found, dict):
            return None
        found = found.get(part)
    return found


def _plant(tree: _Tree, path: str, found: _Object) -> None:
    *above, name = path.split("/")
    for part in above:
        below = tree.get(part)
        if not isinstance(below, dict):
            # An object where a directory is: the marker that consoles make for a "folder".
            below = tree[sys.intern(part)] = {}
        tree = below
    if not isinstance(tree.get(name), dict):
        tree[sys.intern(name)] = found


def _uproot(tree: _Tree, path: str) -> None:
    *above, name = path.split("/")
    trail: list[tuple[_Tree, str]] = []
    for part in above:
        below = tree.get(part)
        if not isinstance(below, dict):
            return
        trail.append((tree, part))
        tree = below
    tree.pop(name, None)
    for parent, part in reversed(trail):
        if parent[part]:
            return
        del parent[part]


def _is_splittable(prefix: str) -> bool:
    """Whether there are prefixes with many objects below it: among names of repositories and the
    two digits of blobs, but not where each has a link or a blob of its own."""
    parts = prefix.split("/")
    is_shard = prefix.startswith(layout.BLOBS) and len(parts) >= 6
    return not is_shard and not any(part.startswith("_") for part in parts)


def _content(
    algorithm: str, name: str, leaf: str, size: int, below: _Object | _Tree | None
) -> bytes | None:
    """What a link holds, if key and size leave no doubt; None: it must be read.

    A link of its own digest's length in that digest's directory is that digest: an alias is in
    another algorithm's and as short as a sha256 (v3.1.1:registry/storage/linkedblobstore.go:327).
    A tag that ever led to one manifest only leads there.
    """
    if not size:
        return b""
    if leaf == CURRENT:
        found = [
            f"{algorithm}:{digits}"
            for algorithm, digests in _items(_walk(below, "index"))
            for digits, link in _items(digests)
            if _walk(link, layout.LINK) is not None
        ]
        digest = found[0] if len(found) == 1 else ""
    else:
        digest = f"{algorithm}:{name}"
    return digest.encode() if size == len(digest) and layout.is_digest(digest) else None


def _items(found: _Object | _Tree | None) -> Iterable[tuple[str, _Object | _Tree]]:
    return found.items() if isinstance(found, dict) else ()


def _object(meta: ObjectMeta) -> _Object:
    # Whole seconds: a listing says more than a HEAD, and the two are compared.
    seconds = (meta["last_modified"] - EPOCH) // timedelta(seconds=1)
    return _Object(meta["size"], seconds * 10**9, _tag(meta["e_tag"]))


def _tag(etag: str | None) -> int:
    return zlib.crc32((etag or "").strip('"').encode())


def _version(meta: ObjectMeta | PutResult) -> UpdateVersion:
    version: UpdateVersion = {}
    if meta["e_tag"] is not None:
        version["e_tag"] = meta["e_tag"]
    if meta["version"] is not None:
        version["version"] = meta["version"]
    return version


def _when(nanoseconds: int) -> str:
    return f"{EPOCH + timedelta(seconds=nanoseconds // 10**9):%Y-%m-%dT%H:%M:%SZ}"


def _first(parts: Iterable[bytes], limit: int) -> Iterator[bytes]:
    """At most `limit` bytes; what is beyond is not downloaded."""
    for part in parts:
        yield bytes(part[:limit])
        limit -= len(part)
        if limit <= 0:
            return


def _short(error: Exception) -> str:
    """The line that says what happened, and the server's code for it: obstore appends all it knows,
    parts of the signature among it."""
    text = str(error)
    line = next((line.strip() for line in text.splitlines() if line.strip()), repr(error))
    said = SAID.search(text)
    line = line.partition(": <?xml")[0].rpartition("Error performing ")[2]
    return f"{line} ({said[1]})" if said else line
