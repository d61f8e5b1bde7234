"""`slim-det inspect`: what can be pruned, what a slim file would prune, and what it saves.

The line below the table says how much of the model that is: the share of the MACs in layers whose
output channels are in a group that can be pruned, and in these or the layers that read them.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from slim_det.cli import common
from slim_det.report.tables import text_table

if TYPE_CHECKING:
    from slim_det.report.inspection import Inspection


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    common.add_config_arguments(parser)
    common.add_image_size_argument(parser)
    common.add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Build the model (without data or weights) and list its groups and totals."""
    from ppdet.core.workspace import create

    from slim_det.core.errors import ConfigError
    from slim_det.detectors.image_size import image_size_hw
    from slim_det.report.inspection import inspect_model
    from slim_det.training import session
    from slim_det.training.config import apply_overrides, load_config

    cfg = load_config(args.config, args.opt)
    pruner = None
    if args.slim_config:
        slim = session.read_slim(args.slim_config)
        apply_overrides(args.opt)
        pruner = create("Pruner") if "Pruner" in slim.strategies else None
        if pruner and pruner.share_of == "energy":
            raise ConfigError(
                f"{args.slim_config}: Pruner.share_of: energy depends on the weights, which "
                "`inspect` does not read; `eval` and `train` print what it prunes"
            )
    model = session.build_model(cfg)
    result = inspect_model(model, image_size_hw(cfg, args.image_size), pruner)
    _print(result)
    common.save_json(args, result.as_dict())
    return 0


def _print(result: Inspection) -> None:
    columns = ("group", "channels", "kept", "ratio", "MACs", "parameters", "cannot be pruned")
    rows = [
        (
            group.name,
            str(group.channels),
            str(group.kept),
            f"{group.ratio:g}" if group.ratio else "",
            _change(group.macs_before, group.macs_after),
            _change(group.params_before, group.params_after),
            group.reason,
        )
        for group in result.groups
    ]
    common.print_table(text_table(columns, rows))
    print(result)


def _change(before: int, after: int) -> str:
    return str(before) if before == after else f"{before} -> {after}"
