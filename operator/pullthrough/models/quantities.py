"""Kubernetes quantities (`50Gi`, `1500m`, `2e3`) as numbers."""

from __future__ import annotations

import re
from decimal import Decimal

_SUFFIXES = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "": Decimal(1),
    **{suffix: Decimal(1000) ** (i + 1) for i, suffix in enumerate("kMGTPE")},
    **{f"{suffix}i": Decimal(1024) ** (i + 1) for i, suffix in enumerate("KMGTPE")},
}


def parse(text: str | int) -> Decimal:
    """The amount; ValueError where the text is no quantity.

    Kubernetes apimachinery v0.34.4:pkg/api/resource/quantity.go:33-60 has the grammar.
    """
    exponent = re.fullmatch(r"([+-]?[0-9.]+)[eE]([+-]?[0-9]+)", str(text))
    if exponent is not None:
        return Decimal(exponent[1]) * Decimal(10) ** int(exponent[2])
    plain = re.fullmatch(r"([+-]?[0-9.]+)([a-zA-Z]*)", str(text))
    if plain is None or plain[2] not in _SUFFIXES:
        msg = f"{text!r} is not a quantity: write 50Gi, 500M or a plain number"
        raise ValueError(msg)
    return Decimal(plain[1]) * _SUFFIXES[plain[2]]
