"""Runs a program on many images, one part after the other, with its activations in files.

A method that changes one layer after the other needs the input of each layer for every image, with
all layers before it changed. Each part runs from what the parts before it have left, so that the
program runs once in all. What later operators read is kept in files: memory does not depend on the
number of images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from slim_det.graph.engine import Engine
from slim_det.graph.op import Op
from slim_det.graph.program import DeployProgram

BYTES_PER_FLOAT = 4

_WITHOUT_WORK = ("feed", "fetch")


class ArrayStore:
    """Arrays of every image, by name, in files.

    Args:
        folder: An existing folder; the files are deleted by `drop`, or with it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._paths: dict[str, Path] = {}
        self._entries: dict[str, list[tuple[int, np.dtype, tuple[int, ...]]]] = {}

    def create(self, name: str) -> None:
        """Begin with no array under this name."""
        path = self._paths.setdefault(name, self._folder / f"{len(self._paths)}.bin")
        path.write_bytes(b"")
        self._entries[name] = []

    def append(self, name: str, array: np.ndarray) -> None:
        """Add the array of the next image."""
        with self._paths[name].open("ab") as file:
            self._entries[name].append((file.tell(), array.dtype, array.shape))
            array.tofile(file)

    def read(self, name: str, index: int) -> np.ndarray:
        """The array of one image."""
        offset, dtype, shape = self._entries[name][index]
        count = math.prod(shape)
        return np.fromfile(self._paths[name], dtype, count, offset=offset).reshape(shape)

    def drop(self, name: str) -> None:
        """Delete the arrays of a name."""
        self._entries.pop(name)
        self._paths[name].unlink()


class StagedRun:
    """A program that is run on the same images from stage to stage.

    Weights may be changed between two stages, if nothing that has been kept depends on them.

    Args:
        program: From images to any outputs.
        images: For every image, the inputs of the program, with a batch axis of one.
        folder: For its files.
        limit_mb: Largest size of the kept activations of all images. A stage that would keep more
            keeps nothing, and what it ran will run again.
        threads: CPU threads.
    """

    def __init__(
        self,
        program: DeployProgram,
        images: ArrayStore,
        count: int,
        folder: Path,
        limit_mb: float = math.inf,
        threads: int | None = None,
    ) -> None:
        self.program, self.count = program, count
        self._images, self._folder, self._threads = images, folder, threads
        self._limit = limit_mb * 1e6
        self._store = ArrayStore(folder)
        self._kept: set[str] = set()
        self._done: set[int] = set()
        self._parameters = set(program.parameters)
        self._shares_statistics = any(
            len(program.readers(name)) > 1
            for op in program.ops
            for name in self._parameters.intersection(op.output_arg_names)
        )
        downstream = program.downstream(program.feeds)
        # What does not depend on an image is a constant, which every part computes for itself.
        self._from_image = {name for op in downstream for name in self._results(op)}

    def arrays(self, names: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        """Run what these variables need; yields their values for each image.

        After the last image, later stages start from here.
        """
        wanted = list(dict.fromkeys(names))
        part = self.part(wanted)
        live = self._live_after(part)
        fits = self._bytes_an_image(live) * self.count <= self._limit
        keep = live if fits else []
        fresh = [name for name in keep if name not in self._kept]
        computed = [name for name in wanted if name not in self._stored]
        outputs = list(dict.fromkeys([*computed, *fresh]))
        read = {name for i in part for name in self.program.ops[i].input_arg_names}
        feeds = [name for name in (*self.program.feeds, *self._kept) if name in read]
        engine = self._engine(part, feeds, outputs) if outputs else None
        for name in fresh:
            self._store.create(name)
        for index in range(self.count):
            found = {name: self._read(name, index) for name in {*feeds, *wanted} & self._stored}
            found.update(engine(found) if engine else {})
            for name in fresh:
                self._store.append(name, found[name])
            yield {name: found[name] for name in wanted}
        if fits:
            self._advance(part, keep)

    def part(self, names: Sequence[str]) -> list[int]:
        """Indices of the operators that the next stage runs for these variables, in order."""
        missing, part = set(names) - self._stored, []
        for index in range(len(self.program.ops) - 1, -1, -1):
            op = self.program.ops[index]
            if op.type not in _WITHOUT_WORK and not missing.isdisjoint(self._results(op)):
                part.append(index)
                missing |= set(op.input_arg_names) - self._stored
        return part[::-1]

    def _results(self, op: Op) -> list[str]:
        """What an operator computes; batch norms also write the statistics that they read."""
        return [name for name in op.output_arg_names if name not in self._parameters]

    def _engine(self, part: list[int], feeds: list[str], outputs: list[str]) -> Engine:
        program = self.program
        if self._shares_statistics:
            # Paddle would add the other batch norm, as if it made the statistics.
            program = program.copy(share_parameters=True)
            for index in range(len(program.ops) - 1, -1, -1):
                if index not in part and program.ops[index].type not in _WITHOUT_WORK:
                    program.remove(program.ops[index])
        return program.engine(feeds, outputs, self._folder, threads=self._threads)

    @property
    def _stored(self) -> set[str]:
        return {*self.program.feeds, *self._kept}

    def _read(self, name: str, index: int) -> np.ndarray:
        store = self._store if name in self._kept else self._images
        return store.read(name, index)

    def _live_after(self, part: list[int]) -> list[str]:
        """What operators that have not run will read of what is stored or computed by then."""
        done = self._done.union(part)
        known = {*self._kept, *(n for i in part for n in self._results(self.program.ops[i]))}
        later = [
            op
            for i, op in enumerate(self.program.ops)
            if i not in done and op.type not in _WITHOUT_WORK
        ]
        read = dict.fromkeys(name for op in later for name in op.input_arg_names)
        return [name for name in read if name in known and name in self._from_image]

    def _bytes_an_image(self, names: Sequence[str]) -> int:
        shapes = (self.program.block.var(name).shape[1:] for name in names)
        return sum(BYTES_PER_FLOAT * abs(math.prod(shape)) for shape in shapes)

    def _advance(self, part: list[int], keep: list[str]) -> None:
        self._done.update(part)
        for name in self._kept.difference(keep):
            self._store.drop(name)
        self._kept = set(keep)


def store_images(
    batches: Iterator[Mapping[str, np.ndarray]], names: Sequence[str], folder: Path
) -> tuple[ArrayStore, int]:
    """Keep the inputs of a program for every image; returns the store and the number of images."""
    store, count = ArrayStore(folder), 0
    for name in names:
        store.create(name)
    for batch in batches:
        for name in names:
            store.append(name, np.asarray(batch[name]))
        count += 1
    return store, count
