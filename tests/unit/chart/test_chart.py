"""The chart, rendered by the real helm: what it installs, what it may do, which values it refuses."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.cluster import programs
from pullthrough import settings
from pullthrough.__about__ import __version__
from pullthrough.cluster import client
from pullthrough.models import crd
from pullthrough.models.settings import KeeperSettings, Settings

ROOT = Path(__file__).parents[3]
CHART = ROOT / "charts" / "pullthrough"
NAMESPACE = "pullthrough-system"
Manifest = dict[str, Any]


@pytest.fixture(scope="session")
def helm() -> Path:
    """Built already, or nothing: this level of tests builds nothing that takes minutes, unless in CI."""
    if programs.path_of("helm").exists() or os.environ.get("CI") == "true":
        return programs.ensure("helm")["helm"]
    pytest.skip("helm is not built yet: make cluster builds it")


def rendered(helm: Path, *arguments: str, values: Manifest | None = None) -> list[Manifest]:
    command = [helm, "template", "pullthrough", CHART, "-n", NAMESPACE]
    done = subprocess.run(
        [*command, "--kube-version", "1.34.0", "-f", "-", *arguments],
        input=yaml.safe_dump(values or {}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode != 0:
        raise ValueError(done.stderr)
    return [manifest for manifest in yaml.safe_load_all(done.stdout) if manifest]


def only(manifests: list[Manifest], kind: str, name: str = "pullthrough") -> Manifest:
    (found,) = [m for m in manifests if (m["kind"], m["metadata"]["name"]) == (kind, name)]
    return found


def container(manifests: list[Manifest]) -> Manifest:
    (found,) = only(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    return dict(found)


def environment(manifests: list[Manifest]) -> dict[str, str]:
    """The variables as the process would see them."""
    return {
        variable["name"]: variable.get("value", NAMESPACE)
        for variable in container(manifests)["env"]
    }


def test_it_passes_helms_own_checks(helm: Path) -> None:
    done = subprocess.run(
        [helm, "lint", "--strict", CHART], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_it_installs_these_objects_and_no_others(helm: Path) -> None:
    objects = {(m["kind"], m["metadata"]["name"]) for m in rendered(helm)}
    assert objects == {
        ("CustomResourceDefinition", "pullthroughcaches.pullthrough.dev"),
        ("ServiceAccount", "pullthrough"),
        ("ClusterRole", "pullthrough"),
        ("ClusterRole", "pullthrough-view"),
        ("ClusterRole", "pullthrough-edit"),
        ("ClusterRoleBinding", "pullthrough"),
        ("Role", "pullthrough"),
        ("RoleBinding", "pullthrough"),
        ("Deployment", "pullthrough"),
        ("PriorityClass", "pullthrough-migration"),
    }


def test_the_definition_is_the_generated_one_and_survives_an_uninstall(helm: Path) -> None:
    name = "pullthroughcaches.pullthrough.dev"
    installed = only(rendered(helm), "CustomResourceDefinition", name)
    assert installed["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    installed["metadata"].pop("labels")
    assert installed == crd.definition()
    not_kept = rendered(helm, "--set", "crds.keep=false")
    assert "annotations" not in only(not_kept, "CustomResourceDefinition", name)["metadata"]
    kinds = {m["kind"] for m in rendered(helm, "--set", "crds.enabled=false")}
    assert "CustomResourceDefinition" not in kinds


def permissions(role: Manifest) -> dict[tuple[str, str], set[str]]:
    return {
        (group, resource): set(rule["verbs"])
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


def test_the_operator_may_do_exactly_this(helm: Path) -> None:
    manifests = rendered(helm)
    read, owned = {"get", "list", "watch"}, {"get", "list", "watch", "create", "patch", "delete"}
    assert permissions(only(manifests, "ClusterRole")) == {
        ("pullthrough.dev", "pullthroughcaches"): read,
        ("pullthrough.dev", "pullthroughcaches/status"): {"patch"},
        ("apps", "statefulsets"): owned,
        ("", "services"): owned,
        ("", "configmaps"): owned,
        ("", "persistentvolumeclaims"): owned,
        ("policy", "poddisruptionbudgets"): owned,
        ("batch", "jobs"): owned - {"patch"},
        ("", "pods"): read | {"create"},
        ("", "events"): {"create"},
    }
    assert permissions(only(manifests, "Role")) == {
        ("coordination.k8s.io", "leases"): {"get", "create", "update"}
    }


def test_what_the_client_says_it_does_is_what_the_chart_permits(helm: Path) -> None:
    manifests = rendered(helm)
    granted = {
        **permissions(only(manifests, "ClusterRole")),
        **permissions(only(manifests, "Role")),
    }
    said: dict[tuple[str, str], set[str]] = {}
    for line in (client.__doc__ or "").splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 4 and cells[0] not in ("group", "---"):
            group = "" if cells[0].strip("()") == "core" else cells[0]
            said.update({(group, name): set(cells[2].split()) for name in cells[1].split()})
    assert granted == said


def test_no_role_has_a_wildcard_or_anything_on_secrets(helm: Path) -> None:
    for role in (m for m in rendered(helm) if m["kind"] in ("Role", "ClusterRole")):
        text = json.dumps(role["rules"])
        assert "*" not in text
        assert "secret" not in text


def test_the_pod_passes_the_restricted_standard(helm: Path) -> None:
    manifests = rendered(helm)
    pod = only(manifests, "Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container(manifests)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert pod["volumes"] == [{"name": "tmp", "emptyDir": {}}]


def test_one_replica_that_is_never_beside_another(helm: Path) -> None:
    spec = only(rendered(helm), "Deployment")["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})


def test_the_selector_finds_the_pods_whatever_the_labels_are(helm: Path) -> None:
    spec = only(rendered(helm, "--set", "podLabels.team=platform"), "Deployment")["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert labels.items() >= spec["selector"]["matchLabels"].items()
    assert labels["team"] == "platform"


def test_the_operator_reads_the_charts_defaults_as_its_own(helm: Path) -> None:
    read = settings.from_environment(environment(rendered(helm)))
    image = f"ghcr.io/pullthrough/pullthrough:{__version__}"
    assert read.planning == Settings(image=image, migration_priority_class="pullthrough-migration")
    assert (read.namespace, read.lease, read.listen_port) == (NAMESPACE, "pullthrough", 8080)


def test_the_operator_reads_every_value_that_can_be_set(helm: Path) -> None:
    names = [field.name for field in dataclasses.fields(KeeperSettings) if field.name != "rate"]
    keeper = {name: f"{position}s" for position, name in enumerate(names, start=1)}
    values = {
        "image": {"repository": "r.example/op", "tag": "t", "pullPolicy": "Never"},
        "registryImages": {"v3": "r.example/v3", "v2": "r.example/v2"},
        "keeper": {**{_camel(name): value for name, value in keeper.items()}, "rate": 7},
        "migration": {"deadline": "2h", "probeFreshness": "3m", "priorityClass": {"name": "low"}},
    }
    read = settings.from_environment(environment(rendered(helm, values=values)))
    assert read.planning == Settings(
        image="r.example/op:t",
        image_pull_policy="Never",
        registry_images={"v3": "r.example/v3", "v2": "r.example/v2"},
        keeper=KeeperSettings(**keeper, rate=7),
        migration_deadline="2h",
        probe_freshness="3m",
        migration_priority_class="low",
    )


def test_migration_jobs_have_the_lowest_priority_unless_there_shall_be_no_class(helm: Path) -> None:
    manifests = rendered(helm)
    made = only(manifests, "PriorityClass", "pullthrough-migration")
    assert (made["value"], made["preemptionPolicy"], made["globalDefault"]) == (
        -1000000,
        "Never",
        False,
    )
    without = rendered(helm, "--set", "migration.priorityClass.create=false")
    assert "PriorityClass" not in {m["kind"] for m in without}
    assert settings.from_environment(environment(without)).planning.migration_priority_class == ""


def test_a_digest_pins_the_image_everywhere(helm: Path) -> None:
    digest = "sha256:" + "a" * 64
    manifests = rendered(helm, "--set", f"image.digest={digest}")
    pinned = f"ghcr.io/pullthrough/pullthrough:{__version__}@{digest}"
    assert container(manifests)["image"] == pinned
    assert environment(manifests)["PULLTHROUGH_IMAGE"] == pinned


def test_probes_ask_the_port_that_the_operator_listens_on(helm: Path) -> None:
    operator = container(rendered(helm))
    assert operator["args"] == ["run"]
    paths = [operator[probe]["httpGet"]["path"] for probe in ("livenessProbe", "readinessProbe")]
    assert paths == ["/healthz", "/readyz"]
    assert operator["ports"] == [{"name": "http", "containerPort": 8080}]


@pytest.mark.parametrize(
    "typo",
    [
        {"imagee": {}},
        {"image": {"repo": "x"}},
        {"image": {"pullPolicy": "Sometimes"}},
        {"image": {"digest": "abc"}},
        {"registryImages": {"v4": "x"}},
        {"keeper": {"sweepIntervall": "1m"}},
        {"keeper": {"sweepInterval": "1d"}},
        {"keeper": {"rate": 0}},
        {"migration": {"deadline": 60}},
        {"crds": {"install": True}},
        {"resources": {"limit": {}}},
    ],
    ids=str,
)
def test_a_typo_in_the_values_is_refused(helm: Path, typo: Manifest) -> None:
    with pytest.raises(ValueError, match="values don't meet the specifications of the schema"):
        rendered(helm, values=typo)


def test_older_clusters_are_refused(helm: Path) -> None:
    with pytest.raises(ValueError, match=r"incompatible with Kubernetes v1\.29\.9"):
        rendered(helm, "--kube-version", "1.29.9")
    assert rendered(helm, "--kube-version", "v1.30.2-gke.100")


def test_every_value_has_a_comment_and_a_schema() -> None:
    text = (CHART / "values.yaml").read_text()
    schema = json.loads((CHART / "values.schema.json").read_text())

    def compare(values: Manifest, below: Manifest, path: str) -> None:
        known = set(below["properties"]) - {"global", "claims"}
        assert set(values) == known, path
        for name, value in values.items():
            if isinstance(value, dict) and "properties" in below["properties"][name]:
                compare(value, below["properties"][name], f"{path}.{name}")

    compare(yaml.safe_load(text), schema, "values")
    blocks = [block for block in re.split(r"\n\n", text) if not block.startswith("pod")]
    assert all(
        "#" in block or block.startswith(("serviceAccount", "resources")) for block in blocks
    )


def test_the_charts_versions_are_the_programs() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)
