"""`slim-det check`: whether the annotations and images of a configuration are sound."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from slim_det.cli import common

if TYPE_CHECKING:
    from slim_det.evaluate.data.check import Contents
    from slim_det.evaluate.data.findings import Kind

DATASETS = ("TrainDataset", "EvalDataset")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    common.add_config_arguments(parser, slim_config=False)
    common.add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Read both data sets completely, decode every image, and print what they hold."""
    from slim_det.core.errors import ConfigError, DataError
    from slim_det.evaluate.data.check import inspect_dataset, require_same_classes
    from slim_det.training.config import load_config

    cfg = load_config(args.config, args.opt)
    names = list(filter(cfg.get, DATASETS))
    if not names:
        raise ConfigError(f"{args.config} names no data set; expected {' or '.join(DATASETS)}")
    figures, unsound = [], []
    classes: dict[str, list[str]] = {}
    for name in names:
        try:
            contents = inspect_dataset(cfg, name)
        except (ConfigError, DataError) as error:
            print(error)
            figures.append({"dataset": name, "error": str(error)})
            unsound.append(name)
            continue
        if contents is None:
            print(f"{name}: not checked; only COCO, VOC and WIDER FACE data sets are")
            continue
        _print(name, contents)
        figures.append({"dataset": name, **_figures(contents)})
        if contents.findings.faults:
            unsound.append(name)
        else:
            classes[name] = contents.classes
    try:
        require_same_classes(classes)
    except DataError as error:
        print(error)
        unsound = names
    common.save_json(args, {"datasets": figures, "passed": not unsound})
    if unsound:
        raise DataError(f"{' and '.join(unsound)} cannot be used as they are; see the lines above")
    return 0


def _print(name: str, contents: Contents) -> None:
    counts = ", ".join(f"{label} {count}" for label, count in sorted(contents.objects.items()))
    print(
        f"{name}: {contents.kind}, {len(contents.images)} images, "
        f"{sum(contents.objects.values())} objects ({counts or 'none'})"
    )
    for kinds in (contents.findings.faults, contents.findings.remarks):
        for line in contents.lines(kinds):
            print(f"{name}: {line}")


def _figures(contents: Contents) -> dict[str, Any]:
    return {
        "kind": contents.kind,
        "num_images": len(contents.images),
        "objects": dict(sorted(contents.objects.items())),
        "faults": _listed(contents.findings.faults),
        "remarks": _listed(contents.findings.remarks),
    }


def _listed(kinds: Mapping[Kind, list[str]]) -> list[dict[str, Any]]:
    return [
        {"kind": kind.one, "places": places, "expected_or_done": kind.rest}
        for kind, places in kinds.items()
    ]
