"""One operator of a program, with the same interface for every kind of program."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Op:
    """One operator of a program.

    Attributes:
        type: Paddle's operator name, e.g. ``conv2d``.
        inputs: Slot name -> variable names.
        outputs: Slot name -> variable names.
        attrs: Attribute name -> value.
        raw: Paddle's own operator.
    """

    type: str
    inputs: dict[str, list[str]]
    outputs: dict[str, list[str]]
    attrs: dict[str, Any]
    raw: Any = field(default=None, repr=False)

    @classmethod
    def read(cls, raw: Any) -> Op:
        """Read one of Paddle's operators."""
        return cls(
            type=raw.type,
            inputs={slot: list(raw.input(slot)) for slot in raw.input_names},
            outputs={slot: list(raw.output(slot)) for slot in raw.output_names},
            attrs={name: raw.attr(name) for name in raw.attr_names if not name.startswith("op_")},
            raw=raw,
        )

    def input(self, slot: str) -> str:
        """The one variable of an input slot; '' if the slot is empty."""
        return (self.inputs.get(slot) or [""])[0]

    def output(self, slot: str = "Out") -> str:
        """The one variable of an output slot; '' if the slot is empty."""
        return (self.outputs.get(slot) or [""])[0]

    @property
    def input_arg_names(self) -> list[str]:
        """All variables that it reads, under Paddle's name for the property."""
        return [name for names in self.inputs.values() for name in names]

    @property
    def output_arg_names(self) -> list[str]:
        """All variables that it writes, under Paddle's name for the property."""
        return [name for names in self.outputs.values() for name in names]
