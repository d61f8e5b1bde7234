"""Records the inputs and outputs of chosen layers while a model runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import numpy as np
from paddle.nn import Layer

Key = TypeVar("Key")


class ActivationRecorder(Generic[Key]):
    """Forward hooks on some layers of a model; the model itself gets no attributes.

    A closed recorder records nothing, so the hooks may stay while the model runs for other
    reasons.

    Args:
        layers: Key -> layer; a layer may have several keys.
        read: Called after each call of a layer with its key, its first input (None if it has
            none) and its output. Its result is kept unless it is None.

    Attributes:
        kept: Key -> results kept since the recorder was opened, one for each call of the layer.
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
        """Register the hooks, unless they are registered already."""
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
        """Forget what was kept, and start recording."""
        self.close()
        self._is_open = True

    def close(self) -> None:
        """Forget what was kept, and stop recording."""
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
        """Attach and record for a block of code; yields `kept`, which is empty afterwards."""
        with self.attached():
            self.open()
            yield self.kept

    def _recorded(self) -> None:
        """Called when the result of a call was kept."""

    def _hook(self, key: Key) -> Callable[[Layer, Any, Any], None]:
        def record(layer: Layer, inputs: Any, output: Any) -> None:
            if self._is_open:
                first = inputs[0] if isinstance(inputs, (tuple, list)) and inputs else None
                value = self._read(key, first, output)
                if value is not None:
                    self.kept[key].append(value)
                    self._recorded()

        return record


def output_array(key: Any, received: Any, output: Any) -> np.ndarray:
    """Read the output as an array, for a recorder."""
    array: np.ndarray = output.numpy()
    return array
