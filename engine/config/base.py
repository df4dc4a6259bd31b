"""Base class and shared types of every configuration section, and the check that no value is a secret.

Configurations are stored with every run, shown in diffs and typed on command lines. So a secret is given as the
name of an environment variable. No message here repeats a value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0)]
DottedPath = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
"""`package.module:function`."""


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        hide_input_in_errors=True,  # a key that was written into the wrong place is not to end in a traceback
    )


class ReplicasConfig(Section):
    """Resources of one pool."""

    num_replicas: PositiveInt = 1
    cpus: Annotated[float, Field(ge=0.0)] = 1.0
    """CPU cores per replica."""
    gpus: Annotated[float, Field(ge=0.0)] = 0.0
    """GPUs per replica; fractions share one."""


_KEY_VALUE = re.compile(r"(sk-|gsk_|xai-|hf_|gh[pousr]_|github_pat_|xox[abp]-|AKIA|Bearer\s)[\w.-]{12,}")
"""How the keys of well-known services begin."""
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
    """Paths inside a free-form value that hold a secret, by their name or by how the value begins."""
    if isinstance(value, dict):
        for key, item in value.items():
            here = f"{path}.{key}" if path else str(key)
            # true, false and null hold no secret: vLLM's hf_token: true means "the one of the environment".
            if is_secret_name(str(key)) and not isinstance(item, bool | None):
                yield here
            else:
                yield from _secrets(item, here)
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _secrets(item, f"{path}.{i}")
    elif isinstance(value, str) and _KEY_VALUE.match(value):
        yield path


def _without_secrets(arguments: dict[str, Any]) -> dict[str, Any]:
    if found := list(_secrets(arguments)):
        raise ValueError(
            f"{', '.join(found)}: looks like a secret, and the configuration is stored with the run; give the NAME of "
            f"an environment variable (under a key that ends in _env) and let the code read it"
        )
    return arguments


def _variable_name(name: str) -> str:
    # An upper-case word without "_" that mixes in digits is how some services' keys look (AKIA...).
    looks_like_key = len(name) >= 16 and "_" not in name and any(c.isdigit() for c in name)
    if not _VARIABLE.fullmatch(name) or looks_like_key:
        raise ValueError(
            "expected the NAME of an environment variable, in capitals as in JUDGE_API_KEY; the value is not repeated "
            "here in case it is the key itself: if so, put it into the environment, and consider a new one"
        )
    return name


Arguments = Annotated[dict[str, Any], AfterValidator(_without_secrets)]
"""Free-form arguments by name, without secrets."""

EnvironmentVariable = Annotated[str, AfterValidator(_variable_name)]
"""The name of an environment variable that holds a secret."""
