"""The generated definition: structural, explained, up to date; and what the generator refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import BaseModel, Field

from pullthrough.models import cache, conditions, crd, fields
from pullthrough.models.cache import PullThroughCache

ROOT = Path(__file__).parents[3]
VERSION = crd.definition()["spec"]["versions"][0]
SCHEMA: dict[str, Any] = VERSION["schema"]["openAPIV3Schema"]


def schemas(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema of the definition, with its path."""
    yield path, schema
    for name, below in schema.get("properties", {}).items():
        yield from schemas(below, f"{path}.{name}")
    if "items" in schema:
        yield from schemas(schema["items"], f"{path}[]")
    if "additionalProperties" in schema:
        yield from schemas(schema["additionalProperties"], f"{path}.*")


ALL = dict(schemas(SCHEMA))


def test_every_schema_is_structural() -> None:
    forbidden = {"$ref", "$defs", "oneOf", "allOf", "not", "const", "title", "uniqueItems"}
    for path, schema in ALL.items():
        is_int_or_string = schema.get("x-kubernetes-int-or-string", False)
        assert not forbidden & schema.keys(), path
        assert ("type" in schema) != is_int_or_string, f"{path}: type"
        assert not {"properties", "additionalProperties"} <= schema.keys(), path
        assert set(schema.get("required", [])) <= schema.get("properties", {}).keys(), path
        assert schema.get("default", 0) is not None, path


def test_keys_of_list_maps_are_required() -> None:
    maps = [s for s in ALL.values() if s.get("x-kubernetes-list-type") == "map"]
    assert len(maps) == 3
    for schema in maps:
        assert set(schema["x-kubernetes-list-map-keys"]) <= set(schema["items"]["required"])


def test_every_property_has_a_description() -> None:
    silent = {
        path
        for path, schema in ALL.items()
        if not path.endswith((".*", "[]")) and "description" not in schema
    }
    assert silent == {".metadata"}, "the API server describes metadata, and nothing else"


def test_descriptions_can_pass_through_helm_and_flux() -> None:
    text = crd.manifest()
    assert "{{" not in text
    assert "${" not in text


def test_whatever_a_rule_looks_at_is_bounded() -> None:
    for path, schema in ALL.items():
        if fields.RULES in schema and schema.get("type") == "string" and "enum" not in schema:
            assert "maxLength" in schema, path


def test_every_rule_says_what_to_do_in_one_sentence() -> None:
    rules = [rule for schema in ALL.values() for rule in schema.get(fields.RULES, [])]
    assert len(rules) >= 15
    for rule in rules:
        assert 20 < len(rule["message"]) < 300
        assert "\n" not in rule["message"]


def test_a_resource_that_nobody_has_seen_does_not_look_finished() -> None:
    assert SCHEMA["properties"]["status"]["default"] == {"observedGeneration": -1}


def test_every_status_field_is_optional() -> None:
    assert "required" not in SCHEMA["properties"]["status"]


def test_defaults_of_nested_objects_are_written_out() -> None:
    spec = SCHEMA["properties"]["spec"]["properties"]
    assert {name: spec[name]["default"] for name in ("gc", "registry")} == {
        "gc": {"mode": "Enabled", "ttl": "168h"},
        "registry": {"series": "v3"},
    }


def test_the_schemas_defaults_are_the_readers() -> None:
    def defaulted(schema: dict[str, Any], value: Any) -> Any:
        if schema.get("type") != "object" or "properties" not in schema:
            return value
        filled = dict(value)
        for name, below in schema["properties"].items():
            if name not in filled and "default" in below:
                filled[name] = below["default"]
            if name in filled:
                filled[name] = defaulted(below, filled[name])
        return filled

    raw = yaml.safe_load((ROOT / "examples" / "cache.yaml").read_text())
    raw["metadata"]["namespace"] = "n"
    server_sees = {**raw, "spec": defaulted(SCHEMA["properties"]["spec"], raw["spec"])}
    assert PullThroughCache.parse(server_sees) == PullThroughCache.parse(raw)


def test_columns_point_at_fields_that_exist() -> None:
    for column in VERSION["additionalPrinterColumns"]:
        path = column["jsonPath"].split("[")[0]
        assert path in ALL or path.startswith(".metadata."), column


def test_condition_types_are_explained_where_users_look() -> None:
    said = ALL[".status.conditions"]["description"]
    assert all(kind in said for kind in conditions.TYPES)


@pytest.mark.parametrize("path", crd.FILES, ids=str)
def test_the_committed_file_is_the_generated_one(path: Path) -> None:
    assert (ROOT / path).read_text() == crd.manifest(), "run: make generate"


def test_the_manifest_is_the_definition() -> None:
    assert yaml.safe_load(crd.manifest()) == json.loads(json.dumps(crd.definition()))


def test_the_command_prints_the_manifest(capsys: pytest.CaptureFixture[str]) -> None:
    assert crd.main([]) == 0
    assert capsys.readouterr().out == crd.manifest()


def test_the_command_writes_both_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert crd.main(["--write"]) == 0
    assert [(tmp_path / path).read_text() for path in crd.FILES] == [crd.manifest()] * 2


class Recursive(BaseModel):
    below: Recursive | None = None


class Union(BaseModel):
    either: int | dict[str, str]


class Iso(BaseModel):
    length: Annotated[str, Field(json_schema_extra={"format": "duration"})]


@pytest.mark.parametrize(
    ("model", "problem"),
    [(Recursive, "contains itself"), (Union, "a union"), (Iso, "use GoDuration")],
)
def test_what_has_no_structural_form_is_refused(model: type[BaseModel], problem: str) -> None:
    with pytest.raises(crd.NotStructural, match=problem):
        crd.schema_of(model, "spec")


class Ordinary(BaseModel):
    """Has one of each thing that is rewritten."""

    word: Literal["only"]
    above: Annotated[int, Field(gt=5)]
    maybe: int | None = None
    names: set[str] = set()


def test_what_pydantic_writes_otherwise_is_rewritten() -> None:
    assert crd.schema_of(Ordinary, "spec")["properties"] == {
        "word": {"type": "string", "enum": ["only"]},
        "above": {"type": "integer", "minimum": 5, "exclusiveMinimum": True},
        "maybe": {"type": "integer"},
        "names": {
            "type": "array",
            "x-kubernetes-list-type": "set",
            "items": {"type": "string"},
        },
    }


def test_rules_of_a_type_and_of_its_field_add_up() -> None:
    ttl = ALL[".spec.gc.ttl"][fields.RULES]
    assert ["Go duration" in rule["message"] for rule in ttl] == [True, False]
    assert cache.GarbageCollection.rules
