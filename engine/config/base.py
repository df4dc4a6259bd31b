"""Base class and shared types of every configuration section, and the check that no value is a secret.

A configuration is stored with its run, shown in diffs and typed on command lines. So a secret is given as the
name of an environment variable. No message here repeats a value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt
from pydantic.fields import FieldInfo

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0)]
DottedPath = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
"""`package.module:function`."""

NO_EFFECT = "no_effect"
WITHOUT_EFFECT = Field(json_schema_extra={NO_EFFECT: True})
"""Annotates a key that decides where, how fast or how closely watched a run computes, but not what.

Such a key may change when a run is resumed. All that may change a floating-point sum has an effect: num_ranks,
micro_batch_size, logits_chunk, tensor_parallel_size, batch_tokens.
"""


def has_no_effect(field: FieldInfo) -> bool:
    """Whether the field is annotated WITHOUT_EFFECT."""
    return isinstance(field.json_schema_extra, dict) and NO_EFFECT in field.json_schema_extra


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        hide_input_in_errors=True,  # a secret in the wrong place must not appear in a traceback
    )


class ReplicasConfig(Section):
    """Resources of one pool of replicas."""

    num_replicas: Annotated[PositiveInt, WITHOUT_EFFECT] = 1
    """Processes that work in parallel on different shards."""
    cpus: Annotated[float, Field(ge=0.0), WITHOUT_EFFECT] = 1.0
    """CPU cores per replica."""
    gpus: Annotated[float, Field(ge=0.0)] = 0.0
    """GPUs per replica; replicas with a fraction share one GPU."""


_KEY_VALUE = re.compile(r"(sk-|gsk_|xai-|hf_|gh[pousr]_|github_pat_|xox[abp]-|AKIA|Bearer\s)[\w.-]{12,}")
"""How the API keys of well-known services begin."""
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")
_SECRET_WORDS = {"password", "passwd", "passphrase", "secret", "secrets", "credential", "credentials", "authorization"}
_SECRET_WORDS |= {"apikey", "bearer"}
_SECRET_ENDS = {("api", "key"), ("access", "key"), ("private", "key"), ("auth", "key"), ("account", "key")}
_SECRET_ENDS |= {(kind, "token") for kind in ("api", "auth", "access", "bearer", "hf", "hub", "refresh", "session")}


def is_secret_name(name: str) -> bool:
    """Whether a key of this name would hold a secret: "hf_token", "apiKey"; not "max_tokens", "api_key_env"."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().replace("-", "_").strip("_").split("_")
    if words[-1] in ("env", "name"):
        return False
    return words == ["token"] or bool(_SECRET_WORDS & set(words)) or tuple(words[-2:]) in _SECRET_ENDS


def _secrets(value: Any, path: str = "") -> Iterator[str]:
    """Paths inside a free-form value that hold a secret, judged by their name or by how the value begins."""
    if isinstance(value, dict):
        for key, item in value.items():
            here = f"{path}.{key}" if path else str(key)
            # true, false and null are no secrets: vLLM's hf_token: true means "read it from the environment".
            if is_secret_name(str(key)) and not isinstance(item, bool | None):
                yield here
            else:
                yield from _secrets(item, here)
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _secrets(item, f"{path}.{i}")
    elif isinstance(value, str) and _KEY_VALUE.match(value):
        yield path


def _check_no_secrets(arguments: dict[str, Any]) -> dict[str, Any]:
    if paths := list(_secrets(arguments)):
        raise ValueError(
            f"{', '.join(paths)}: looks like a secret, and the configuration is stored with the run; give the NAME of "
            f"an environment variable (under a key that ends in _env) and let the code read it"
        )
    return arguments


def _check_variable_name(name: str) -> str:
    # Some services' keys are long upper-case words with digits and without "_" (AKIA...).
    looks_like_key = len(name) >= 16 and "_" not in name and any(c.isdigit() for c in name)
    if not _VARIABLE.fullmatch(name) or looks_like_key:
        raise ValueError(
            "expected the NAME of an environment variable, in capitals as in JUDGE_API_KEY; the value is not repeated "
            "here in case it is the key itself: if so, put it into the environment, and consider a new one"
        )
    return name


Arguments = Annotated[dict[str, Any], AfterValidator(_check_no_secrets)]
"""Free-form arguments by name, without secrets."""

EnvironmentVariable = Annotated[str, AfterValidator(_check_variable_name)]
"""The name of an environment variable that holds a secret."""
