"""One operator of a program, as everything that reads a program sees it."""

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
        raw: Paddle's own operator, where the program can be edited.
    """

    type: str
    inputs: dict[str, list[str]]
    outputs: dict[str, list[str]]
    attrs: dict[str, Any]
    raw: Any = field(default=None, repr=False)

    @classmethod
    def read(cls, raw: Any) -> Op:
        """Read an operator of Paddle's."""
        return cls(
            type=raw.type,
            inputs={slot: list(raw.input(slot)) for slot in raw.input_names},
            outputs={slot: list(raw.output(slot)) for slot in raw.output_names},
            attrs={name: raw.attr(name) for name in raw.attr_names if not name.startswith("op_")},
            raw=raw,
        )

    def input(self, slot: str) -> str:
        """The one variable of an input slot; '' where the slot is empty."""
        return (self.inputs.get(slot) or [""])[0]

    def output(self, slot: str = "Out") -> str:
        """The one variable of an output slot; '' where the slot is empty."""
        return (self.outputs.get(slot) or [""])[0]

    @property
    def input_arg_names(self) -> list[str]:
        """Every variable that it reads, called as Paddle calls it."""
        return [name for names in self.inputs.values() for name in names]

    @property
    def output_arg_names(self) -> list[str]:
        """Every variable that it gives, called as Paddle calls it."""
        return [name for names in self.outputs.values() for name in names]
