"""Volumes for claims: a small provisioner, run as one of a cluster's programs.

Kubernetes' own hostpath provisioner makes folders that only root can write; local PersistentVolumes obey
fsGroup, as real disks do. So a claim gets a folder and a local volume that is bound to the node. With the
class parameter `medium: memory` the folder is a tmpfs of the claim's size, so that a full disk is one.
A claim that grows is grown: this also plays the part of the external resizer.

It looks at everything a few times a second and acts on what is missing; it remembers nothing.
"""

import contextlib
import re
import shutil
import sys
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path

from e2e.cluster.commands import run
from e2e.cluster.errors import ClusterError
from e2e.cluster.rest import Api, Json

PROVISIONER = "local.e2e.pullthrough.dev"
_EVERY = 0.3
_PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"
_SELECTED_NODE = "volume.kubernetes.io/selected-node"
_VOLUMES = "/api/v1/persistentvolumes"
_CLAIMS = "/api/v1/persistentvolumeclaims"
_CLASSES = "/apis/storage.k8s.io/v1/storageclasses"


def classes() -> list[Json]:
    """`local`, the default, and `local-small` on tmpfs."""
    return [
        _class("local", {"medium": "disk"}, is_default="true"),
        _class("local-small", {"medium": "memory"}, is_default="false"),
    ]


def _class(name: str, parameters: dict[str, str], *, is_default: str) -> Json:
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": name,
            "annotations": {"storageclass.kubernetes.io/is-default-class": is_default},
        },
        "provisioner": PROVISIONER,
        "parameters": parameters,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer",
        "allowVolumeExpansion": True,
    }


class Provisioner:
    """The loop; `folder` is where volumes are made, `node` whose they are."""

    def __init__(self, api: Api, folder: Path, node: str) -> None:
        """Nothing is done before `look`."""
        self._api = api
        self._folder = folder
        self._node = node

    def look(self) -> None:
        """Do everything that is to be done now."""
        ours = {
            each["metadata"]["name"]: each
            for each in self._api.get(_CLASSES)["items"]
            if each["provisioner"] == PROVISIONER
        }
        claims = self._api.get(_CLAIMS)["items"]
        for claim in claims:
            kind = ours.get(claim["spec"].get("storageClassName", ""))
            if kind is not None and _waits_for_volume(claim, kind):
                self._provision(claim, kind)
        by_uid = {claim["metadata"]["uid"]: claim for claim in claims}
        for volume in self._api.get(_VOLUMES)["items"]:
            if volume["metadata"].get("annotations", {}).get(_PROVISIONED_BY) != PROVISIONER:
                continue
            claim = by_uid.get(volume["spec"].get("claimRef", {}).get("uid", ""))
            if claim is not None:
                self._grow(volume, claim)
            elif _is_to_be_removed(volume):
                self._remove(volume)

    def _provision(self, claim: Json, kind: Json) -> None:
        meta, spec = claim["metadata"], claim["spec"]
        name = f"pvc-{meta['uid']}"
        size = spec["resources"]["requests"]["storage"]
        path = self._folder / name
        in_memory = kind.get("parameters", {}).get("medium") == "memory"
        path.mkdir(parents=True, exist_ok=True)
        # Root's alone: who has no fsGroup cannot write, as on a new disk.
        path.chmod(0o755)
        if in_memory and not path.is_mount():
            _mount(
                "-t", "tmpfs", "-o", f"size={parse_quantity(size)},mode=0755", "tmpfs", str(path)
            )
        hostname = {"key": "kubernetes.io/hostname", "operator": "In", "values": [self._node]}
        volume = {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name, "annotations": {_PROVISIONED_BY: PROVISIONER}},
            "spec": {
                "capacity": {"storage": size},
                "accessModes": spec["accessModes"],
                "volumeMode": "Filesystem",
                "storageClassName": kind["metadata"]["name"],
                "persistentVolumeReclaimPolicy": kind.get("reclaimPolicy", "Delete"),
                "local": {"path": str(path)},
                "nodeAffinity": {
                    "required": {"nodeSelectorTerms": [{"matchExpressions": [hostname]}]}
                },
                "claimRef": {
                    "apiVersion": "v1",
                    "kind": "PersistentVolumeClaim",
                    "namespace": meta["namespace"],
                    "name": meta["name"],
                    "uid": meta["uid"],
                },
            },
        }
        with _expecting(409):  # made by an earlier look, not bound yet
            self._api.ask("POST", _VOLUMES, volume)
            print(f"made {path} of {size} for {meta['namespace']}/{meta['name']}", flush=True)

    def _grow(self, volume: Json, claim: Json) -> None:
        wanted = claim["spec"]["resources"]["requests"]["storage"]
        is_bound = claim["status"].get("phase") == "Bound"
        has = claim["status"].get("capacity", {}).get("storage", wanted)
        if not is_bound or parse_quantity(wanted) <= parse_quantity(has):
            return
        path = Path(volume["spec"]["local"]["path"])
        if path.is_mount():
            _mount("-o", f"remount,size={parse_quantity(wanted)}", str(path))
        capacity = {"capacity": {"storage": wanted}}
        meta = claim["metadata"]
        claim_path = f"/api/v1/namespaces/{meta['namespace']}/persistentvolumeclaims/{meta['name']}"
        self._api.ask("PATCH", f"{_VOLUMES}/{volume['metadata']['name']}", {"spec": capacity})
        self._api.ask("PATCH", f"{claim_path}/status", {"status": capacity})
        print(f"grew {path} to {wanted}", flush=True)

    def _remove(self, volume: Json) -> None:
        path = Path(volume["spec"]["local"]["path"])
        if path.is_mount():
            run(["umount", "--lazy", path], f"unmounting {path}", within=60)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)
        with _expecting(404):
            self._api.ask("DELETE", f"{_VOLUMES}/{volume['metadata']['name']}")
            print(f"removed {path}", flush=True)


def parse_quantity(text: str) -> int:
    """Bytes of a Kubernetes quantity."""
    found = re.fullmatch(r"([0-9.]+)([KMGTP]i|[kMGTP])?", text)
    if found is None:
        msg = f"not a quantity of bytes: {text!r}"
        raise ValueError(msg)
    number, unit = found.groups(default="")
    power = " kMGTP".index(unit[0].replace("K", "k")) if unit else 0
    return int(float(number) * (1024 if unit.endswith("i") else 1000) ** power)


def _waits_for_volume(claim: Json, kind: Json) -> bool:
    chosen = claim["metadata"].get("annotations", {}).get(_SELECTED_NODE)
    may_bind = bool(chosen) or kind.get("volumeBindingMode") == "Immediate"
    is_going = bool(claim["metadata"].get("deletionTimestamp"))
    return may_bind and not is_going and not claim["spec"].get("volumeName")


def _is_to_be_removed(volume: Json) -> bool:
    is_released = volume["status"].get("phase") == "Released"
    is_going = bool(volume["metadata"].get("deletionTimestamp"))
    policy = volume["spec"]["persistentVolumeReclaimPolicy"]
    return is_released and not is_going and policy == "Delete"


@contextlib.contextmanager
def _expecting(code: int) -> Iterator[None]:
    try:
        yield
    except urllib.error.HTTPError as error:
        if error.code != code:
            raise


def _mount(*arguments: str) -> None:
    run(["mount", *arguments], f"mount {' '.join(arguments)}", within=60)


def main(url: str, token_file: str, ca: str, folder: str, node: str) -> None:
    """Look for ever; what fails is told and tried again."""
    token = Path(token_file).read_text().strip()
    provisioner = Provisioner(Api(url=url, token=token, ca=Path(ca)), Path(folder), node)
    while True:
        try:
            provisioner.look()
        except (OSError, ClusterError, ValueError) as error:
            print(f"{type(error).__name__}: {error}", flush=True)
        time.sleep(_EVERY)


if __name__ == "__main__":
    main(*sys.argv[1:])
