"""The base of every configuration section, and the field types sections are made of.

A section is a frozen pydantic model that lives beside what it configures; unknown keys are errors,
numbers may be written `1e-4` (which YAML 1.1 reads as text), and nothing is converted silently:
a boolean is not a number, and `no` (which YAML 1.1 reads as False) is not a language.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic_core import CoreSchema
from typing_extensions import Self

from .errors import Problem
from .reading import written
from .registry import Registry


class Conflicts(ValueError):
    """Values that are legal alone and not together."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("; ".join(map(str, self.problems)))


class Section(BaseModel):
    """One section of the configuration. Frozen; unknown keys are refused.

    `gone` tells what to do about options that older versions had; `set_by_flag` whether --set reaches them.
    """

    gone: ClassVar[Mapping[str, str]] = {}
    set_by_flag: ClassVar[bool] = True
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=())

    @classmethod
    def defaults(cls) -> Self:
        """The section with nothing said."""
        return cls.model_validate({})

    def conflicts(self) -> Iterable[Problem]:
        """What is wrong between options that are right by themselves; paths are relative to this section."""
        return ()

    @model_validator(mode="after")
    def _without_conflicts(self) -> Self:
        problems = list(self.conflicts())
        if problems:
            raise Conflicts(problems)
        return self


_LARGEST = 2**63 - 1


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"expected a number, got {value}")
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise ValueError("a number this large is out of range")
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            raise ValueError(f"expected a number, got {value!r}") from None
    return value


def _integer(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"expected a whole number, got {value}")
    if isinstance(value, str):
        value = _number(value)
    if isinstance(value, float):
        if not value.is_integer():
            raise ValueError(f"expected a whole number, got {value:g}")
        value = int(value)
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise ValueError("a number this large is out of range")
    return value


def _text(value: Any) -> Any:
    if isinstance(value, bool):
        spelt = "no, off or false" if not value else "yes, on or true"
        raise ValueError(f"expected text, got {value}; YAML reads {spelt} as a boolean: write it in quotes")
    if not isinstance(value, str):
        raise ValueError(f"expected text, got {written(value)}")
    return value


def _path(value: str) -> str:
    if "\0" in value:
        raise ValueError(f"{value!r} cannot name a file or a directory")
    return value


Float = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Int = Annotated[int, BeforeValidator(_integer)]
Text = Annotated[str, BeforeValidator(_text)]
PathText = Annotated[Text, AfterValidator(_path)]

Positive = Annotated[Float, Field(gt=0)]
NonNegative = Annotated[Float, Field(ge=0)]
Probability = Annotated[Float, Field(ge=0, lt=1)]
Count = Annotated[Int, Field(ge=1)]
CountOrZero = Annotated[Int, Field(ge=0)]


def choice(registry: Registry[Any]) -> Any:
    """A field whose value is a name of `registry`; a miss is answered with the nearest name.

    The registry is read when a value is checked or a schema is asked for, so a choice registered later is
    legal, and listed, too.
    """

    def known(name: str) -> str:
        registry.entry(name)
        return name

    return Annotated[Text, AfterValidator(known), _NamesOf(registry)]


class _NamesOf:
    """The names of a registry as a JSON Schema."""

    def __init__(self, registry: Registry[Any]) -> None:
        self.registry = registry

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"type": "string", "enum": list(self.registry)}
