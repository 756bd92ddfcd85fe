"""Every way in which a pull-through cache is known to leak, as a table. `test_leaks.py` walks it on real registries.

The numbers are those of the project's research; they are stable and have gaps nowhere. `provoke` is in `provoking.py`
and says what must stay; what `audit` calls it and what ends it is asserted, recorded in `leaks.json`, and told in
docs/leaks.md, which `leaks_document.py` makes of both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tests.registry import provoking
from tests.registry.provoking import Left, Scene

CURRENT: Final = "3.1.2"
FIRST: Final = "3.0.0"
OLD: Final = "2.8.2"
BOTH: Final = (CURRENT, OLD)
EVERY: Final = (CURRENT, FIRST, OLD)
RESEED: Final = "reseed"
SWEEP: Final = "sweep"
KEEP: Final = "keep"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One way to leak.

    `how`: what was done to the registry, for people. `constructed`: why no real registry was made to do it; a tree was
    built by hand instead (what audit and the cures do with it is still seen on a real registry). `ttl`: what audit and
    reseed are told, except on 2.8. `elsewhere`: why it is no row of the other versions. `ends`: the programs
    that end it on a stopped registry, in the order in which they are run.
    """

    number: int
    happens: str
    how: str
    provoke: Callable[[Scene], Left]
    ends: tuple[str, ...]
    versions: tuple[str, ...] = BOTH
    ttl: str = provoking.TTL
    elsewhere: str = ""
    constructed: str = ""


ROWS: Final[tuple[Row, ...]] = (
    Row(
        number=1,
        happens="deletion is off: at its expiry the entry is dropped, the artifact stays",
        how="started with `delete.enabled: false` on a state that was due; `operation unsupported` for each entry",
        provoke=provoking.delete_is_off,
        ends=(RESEED,),
    ),
    Row(
        number=2,
        happens="`proxy.ttl: 0`: nothing is ever scheduled",
        how="filled with `ttl: 0s`",
        provoke=provoking.ttl_is_zero,
        ends=(RESEED,),
        versions=(CURRENT,),
        elsewhere="2.8 has no such setting",
    ),
    Row(
        number=3,
        happens="a hit schedules nothing, so nothing of this list heals by itself",
        how="pulled again what a kill had left without entries, and another image: only that got entries",
        provoke=provoking.only_hits,
        ends=(RESEED,),
    ),
    Row(
        number=4,
        happens="a manifest's expiry removes its link and not its bytes",
        how="let everything expire",
        provoke=provoking.payload_stays,
        ends=(SWEEP,),
    ),
    Row(
        number=5,
        happens="no expiry removes a tag's links",
        how="let everything expire",
        provoke=provoking.tags_stay,
        ends=(SWEEP,),
    ),
    Row(
        number=6,
        happens="an expiry leaves the directories that it empties, 4 KiB each",
        how="let everything expire",
        provoke=provoking.directories_stay,
        ends=(SWEEP,),
    ),
    Row(
        number=7,
        happens="a shared layer goes with its first repository's entry; the others' links dangle",
        how="let two images with a common layer expire; `unknown blob` for the second",
        provoke=provoking.shared_data_goes,
        ends=(SWEEP,),
    ),
    Row(
        number=8,
        happens="killed within 5 s of a fill: cached, and the entry is lost",
        how="SIGKILL after a pull",
        provoke=provoking.killed_unsaved,
        ends=(RESEED,),
    ),
    Row(
        number=9,
        happens="a torn state is a crash loop; somebody deletes the file, and all entries are lost",
        how="half of the state cut off by hand; the registry ended with 2; the file deleted; all pulled again",
        provoke=provoking.state_was_torn,
        ends=(RESEED,),
    ),
    Row(
        number=10,
        happens="two registries on one storage: the last one that saves wins",
        how="one image pulled through each of two",
        provoke=provoking.two_replicas,
        ends=(RESEED,),
    ),
    Row(
        number=11,
        happens="removing the link fails at expiry: logged, and the entry is dropped",
        how="a mount on the link while it expired: `device or resource busy`",
        provoke=provoking.deleting_the_link_fails,
        ends=(RESEED,),
    ),
    Row(
        number=12,
        happens="the link is removed, and removing the data fails, or it dies in between",
        how="a mount on the data while it expired: `device or resource busy`",
        provoke=provoking.deleting_the_data_fails,
        ends=(SWEEP,),
    ),
    Row(
        number=13,
        happens="data is in place, and writing the link fails, or it dies in between",
        how="the repository's links on a read-only mount during a pull",
        provoke=provoking.linking_fails,
        ends=(SWEEP,),
    ),
    Row(
        number=14,
        happens="a client that knows schema 1 only: the config is cached and never scheduled",
        how="a tag pulled with no Accept but schema 1's",
        provoke=provoking.schema_1_was_asked_for,
        ends=(RESEED,),
        versions=(OLD,),
        elsewhere="3.x converts nothing",
    ),
    Row(
        number=15,
        happens="a blob asked for by sha512: its entry removes that link only; the sha256 link and the data stay",
        how="two blobs pulled by sha512, one of them expired",
        provoke=provoking.blob_by_sha512,
        ends=(SWEEP, RESEED),
    ),
    Row(
        number=16,
        happens="a manifest asked for by sha512: its entry can never fire for the sha256 link",
        how="pulled from an upstream of ours that knows manifests by sha512, then expired: `unknown blob`",
        provoke=provoking.manifest_by_sha512,
        ends=(RESEED,),
    ),
    Row(
        number=17,
        happens="a fill that failed leaves its upload",
        how="2.8.2 and 3.0.0: the upstream cut a body; 3.1.2, which cleans up after that: it sent wrong bytes",
        provoke=provoking.fill_was_cut,
        ends=(SWEEP,),
        versions=EVERY,
    ),
    Row(
        number=18,
        happens="2.8 schedules what it failed to store: an entry without a blob, harmless",
        how="the upstream sent wrong bytes",
        provoke=provoking.entry_without_blob,
        ends=(SWEEP, RESEED),
        versions=(OLD,),
        elsewhere="3.x schedules after storing",
    ),
    Row(
        number=19,
        happens="a write that ended early leaves its temporary file",
        how="a full disk while the state was saved: `no space left on device`",
        provoke=provoking.temporary_file,
        ends=(SWEEP, RESEED),
        versions=(CURRENT,),
        elsewhere="2.8 and 3.0 write in place",
    ),
    Row(
        number=20,
        happens="a slow fill ends after the drain timeout: stored, and the scheduler takes no more entries",
        how="links and data without entries",
        provoke=provoking.filled_after_stop,
        ends=(RESEED,),
        versions=(CURRENT,),
        elsewhere="2.8 never stops its scheduler",
        constructed="the process ends milliseconds after its scheduler: a fill would have to end between the two",
    ),
    Row(
        number=21,
        happens="the state cannot be written: entries are in memory only",
        how="the state on a read-only mount of its own; it was complained about and not saved",
        provoke=provoking.state_is_not_writable,
        ends=(RESEED,),
    ),
    Row(
        number=22,
        happens="a state made by hand has keys that cannot fire, such as with a host: dropped at expiry",
        how="`docker.io/` written before every key of a state that was due; an error for each",
        provoke=provoking.keys_with_host,
        ends=(RESEED,),
    ),
    Row(
        number=23,
        happens="content that was there before the registry was a cache: pushed, copied or restored",
        how="pushed to the same program without `proxy`",
        provoke=provoking.pushed_before,
        ends=(RESEED,),
    ),
    Row(
        number=24,
        happens="an empty link, torn by a crash of 2.8 or 3.0: 500 for ever, and no expiry removes it",
        how="a link of a real fill truncated by hand; two requests gave 500 twice",
        provoke=provoking.empty_link,
        ends=(SWEEP,),
        versions=EVERY,
        constructed="the instant between truncating a link and writing it was not hit; 3.1 has none, but inherits volumes",
    ),
    Row(
        number=25,
        happens="schema-1 manifests of 2.8 under 3.x: not served, `garbage-collect` aborts on them",
        how="a schema-1 payload and its link added to a real fill; `registry garbage-collect` ended with 1",
        provoke=provoking.schema_1_manifests,
        ends=(RESEED,),
        versions=(CURRENT,),
        elsewhere="2.8 serves them",
        constructed="no upstream with signed schema-1 manifests was at hand",
    ),
    Row(
        number=26,
        happens="the ttl was lowered: entries keep the time that they have",
        how=f"filled with {provoking.TTL}, then pulled again with {provoking.SHORTER_TTL}",
        provoke=provoking.ttl_was_lowered,
        ttl=provoking.SHORTER_TTL,
        ends=(RESEED,),
        versions=(CURRENT,),
        elsewhere="2.8's ttl is fixed",
    ),
    Row(
        number=27,
        happens="data of no bytes under a good link: a layer is served as an empty 200 for ever",
        how="a layer and a manifest of a real fill truncated by hand; two requests gave 200 with length 0 twice",
        provoke=provoking.torn_data,
        ends=(SWEEP,),
        versions=EVERY,
        constructed="it takes a power cut and a file system that had not written the bytes yet",
    ),
)
