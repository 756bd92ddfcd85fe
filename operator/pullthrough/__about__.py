"""The version, in one place: hatchling, `--version` and the image's label read it here."""

__version__ = "0.1.0"
