"""What every section of the configuration is built from: the base class and types that several sections share.

Knows no key of any particular role; those are in engine/config/model.py and judge.py.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

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

    kind: str
    num_replicas: PositiveInt = 1
    cpus: Annotated[float, Field(ge=0.0)] = 1.0
    """CPU cores per replica."""
    gpus: Annotated[float, Field(ge=0.0)] = 0.0
    """GPUs per replica; fractions share one."""
