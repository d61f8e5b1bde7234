"""The activation recorder: what named layers of a model read and give while it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import numpy as np
from paddle.nn import Layer

Key = TypeVar("Key")


class ActivationRecorder(Generic[Key]):
    """Forward hooks on some layers of a model; the model itself is given no attributes.

    Nothing is recorded while the recorder is closed, so the hooks may stay in place while the
    model runs for any other reason.

    Args:
        layers: Key -> layer; a layer may stand under several keys.
        read: Called after each call of a layer with its key, its first input (None where it has
            none) and its output; what it returns is kept, unless that is None.

    Attributes:
        kept: Key -> what was kept since the recorder was opened, one entry a call of the layer.
    """

    def __init__(
        self, layers: Mapping[Key, Layer], read: Callable[[Key, Any, Any], object]
    ) -> None:
        self.kept: dict[Key, list[Any]] = {key: [] for key in layers}
        self._layers = dict(layers)
        self._read = read
        self._handles: list[Any] = []
        self._is_open = False

    def attach(self) -> None:
        """Register the hooks; nothing happens where they are registered already."""
        if not self._handles:
            for key, layer in self._layers.items():
                self._handles.append(layer.register_forward_post_hook(self._hook(key)))

    def detach(self) -> None:
        """Remove the hooks, and forget what was kept."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.close()

    def open(self) -> None:
        """Forget what was kept, and record from now on."""
        self.close()
        self._is_open = True

    def close(self) -> None:
        """Forget what was kept, and record nothing from now on."""
        self._is_open = False
        for values in self.kept.values():
            values.clear()

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Attach for a block of code, closed at first."""
        try:
            self.attach()
            yield
        finally:
            self.detach()

    @contextlib.contextmanager
    def recording(self) -> Iterator[dict[Key, list[Any]]]:
        """Attach for a block of code and record all of it; gives `kept`, which is empty after."""
        with self.attached():
            self.open()
            yield self.kept

    def _hook(self, key: Key) -> Callable[[Layer, Any, Any], None]:
        def record(layer: Layer, inputs: Any, output: Any) -> None:
            if self._is_open:
                first = inputs[0] if isinstance(inputs, (tuple, list)) and inputs else None
                value = self._read(key, first, output)
                if value is not None:
                    self.kept[key].append(value)

        return record


def output_array(key: Any, received: Any, output: Any) -> np.ndarray:
    """The output as an array, for a recorder that keeps it."""
    array: np.ndarray = output.numpy()
    return array
