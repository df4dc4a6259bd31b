"""A configuration as what differs from the defaults."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined


@dataclass(frozen=True)
class Setting:
    """One key of a configuration."""

    key: str
    value: Any
    default: Any = None
    has_default: bool = True
    """False: the key must be given, or it chooses the variant of its section."""


def settings_changed(section: BaseModel, prefix: str = "") -> list[Setting]:
    """The keys whose values are not the defaults, in order. In a section that is optional, its own defaults count."""
    return [s for s in _settings(section, prefix) if not s.has_default or s.value != s.default]


def all_settings(section: BaseModel) -> list[Setting]:
    """Every key in effect, in order."""
    return list(_settings(section, ""))


def _settings(section: BaseModel, prefix: str) -> Iterator[Setting]:
    for name, field in type(section).model_fields.items():
        value, key = getattr(section, name), f"{prefix}{name}"
        default = _default(field)
        if isinstance(value, BaseModel):
            yield from _settings(value, f"{key}.")
        elif default is PydanticUndefined or _is_tag(field):
            yield Setting(key, value, None, has_default=False)
        else:
            yield Setting(key, value, default)


def _is_tag(field: FieldInfo) -> bool:
    """Whether the key only names the variant of its section, as scorer.kind does."""
    return get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1


def _default(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True)
