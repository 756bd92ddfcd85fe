"""What the models of the custom resource are made of: the base class, rules, and reusable field types.

A rule is written once with both its faces: the CEL text that the API server evaluates (so that a wrong resource is
refused when it is applied) and the Python predicate by which reading refuses the same (a resource may be older than
the CRD). Both say the same sentence, and the sentence says what to do. Transition rules have no Python face: whoever
reads sees one object only.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from pullthrough import durations

RULES: Final = "x-kubernetes-validations"
"""Where a structural schema keeps its CEL rules."""

DURATION_PATTERN: Final = r"^([0-9]{1,6}(\.[0-9]{1,6})?(h|m|s|ms))+$"
"""Six digits and 20 characters at most: what matches cannot overflow CEL's duration()."""
_LABEL: Final = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_PORT: Final = (
    r"([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
)
HOST_PATTERN: Final = rf"^{_LABEL}(\.{_LABEL})*(:{_PORT})?$"
URL_PATTERN: Final = (
    rf"^https?://([a-zA-Z0-9]([-a-zA-Z0-9.]*[a-zA-Z0-9])?|\[[0-9a-fA-F:.]+\])(:{_PORT})?/?$"
)
QUANTITY_PATTERN: Final = r"^[0-9]+(\.[0-9]+)?([KMGTPE]i|[kMGTPE])?$"
"""Sizes of volumes: no sign, no exponent, no fractions of a byte."""
RESOURCE_PATTERN: Final = (
    r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?[0-9]+))?$"
)
"""Any quantity, as Kubernetes' own controllers generate it into their CRDs."""


class BrokenRule(ValueError):
    """A value for which a rule does not hold."""

    def __init__(self, message: str, field_path: str) -> None:
        super().__init__(message)
        self.field_path = field_path


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One demand on a value, for the API server and for the reader."""

    cel: str
    message: str
    """Says what is wrong and what to do."""
    holds: Callable[[Any], bool] | None = None
    """None for a transition rule: it compares with ``oldSelf``, which only the API server has."""
    field_path: str = ""
    """For a rule on an object: the field that the message is about, as ``.gc.ttl``."""

    def schema(self) -> dict[str, str]:
        """The rule as a structural schema has it."""
        path = {"fieldPath": self.field_path} if self.field_path else {}
        return {"rule": self.cel, "message": self.message, **path}

    def check(self, value: Any) -> None:
        """Raise BrokenRule if it does not hold."""
        if self.holds is not None and not self.holds(value):
            raise BrokenRule(self.message, self.field_path)


class Checked:
    """Annotates a field's type with rules: ``Annotated[str, Checked(rule, ...)]``."""

    def __init__(self, *rules: Rule) -> None:
        self.rules = rules

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        produced = handler(schema)
        rules = [*produced.get(RULES, []), *(rule.schema() for rule in self.rules)]
        return {**produced, RULES: rules}

    def _check(self, value: Any) -> Any:
        for rule in self.rules:
            rule.check(value)
        return value


class Model(BaseModel):
    """camelCase on the wire, snake_case here; frozen; unknown fields are ignored.

    The API server prunes what the CRD does not know; a reader that refused it would only break downgrades.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        frozen=True,
        extra="ignore",
        use_attribute_docstrings=True,
    )

    rules: ClassVar[tuple[Rule, ...]] = ()
    """Rules on the object as a whole."""

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        for rule in self.rules:
            rule.check(self)
        return self

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        produced = super().__get_pydantic_json_schema__(schema, handler)
        if cls.rules:
            target = handler.resolve_ref_schema(produced)
            target[RULES] = [rule.schema() for rule in cls.rules]
        return produced

    def as_json(self) -> dict[str, Any]:
        """The object as it would stand in a manifest: camelCase, without what is unset."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def matches(pattern: str) -> str:
    """The CEL text "this string matches the pattern"."""
    return f"self.matches(r'{pattern}')"


def is_duration(text: str) -> bool:
    """True if `text` is a Go duration of the form that the schema admits."""
    return re.fullmatch(DURATION_PATTERN, text) is not None and len(text) <= 20


def seconds(text: str) -> float:
    """The length of a Go duration."""
    return durations.parse_go(text).total_seconds()


def _resource_quantity(value: int | str) -> int | str:
    if re.fullmatch(RESOURCE_PATTERN, str(value)) is None:
        raise ValueError("must be a quantity such as 500m, 2 or 512Mi")
    return value


GoDuration = Annotated[
    str,
    StringConstraints(max_length=20),
    Checked(
        Rule(
            cel=matches(DURATION_PATTERN),
            message="must be a Go duration such as 168h, 90m or 1h30m (units: h, m, s, ms; no days)",
            holds=is_duration,
        )
    ),
]

ObjectName = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)
]

ResourceQuantity = Annotated[
    int | str,
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": RESOURCE_PATTERN,
            "x-kubernetes-int-or-string": True,
        }
    ),
    AfterValidator(_resource_quantity),
]

Json = Annotated[
    dict[str, Any],
    WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True}),
]
"""An object that we hand on as it is: the API server judges it where it ends up."""

Timestamp = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]
Int64 = Annotated[int, Field(json_schema_extra={"format": "int64"})]
