"""`slim-det eval`: AP of a checkpoint, or of the very file that is shipped."""

from __future__ import annotations

import argparse

from slim_det.cli.common import (
    add_artifact_arguments,
    add_config_arguments,
    add_json_argument,
    make_predictor,
    read_configs,
    save_json,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    add_config_arguments(parser)
    add_artifact_arguments(parser)
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluate and print one line."""
    from slim_det.data.check import check_dataset
    from slim_det.export.images import eval_at
    from slim_det.export.predictor import Predictor
    from slim_det.metrics.evaluation import evaluate

    cfg, slim = read_configs(args)
    check_dataset(cfg, "EvalDataset")
    predict, engine = make_predictor(args, cfg, slim)
    if not isinstance(predict, Predictor):
        result = evaluate(cfg, predict, engine)
        figures = result.as_dict()
    else:
        # An artefact is measured at the size that it was exported for.
        with eval_at(cfg, predict.image_size_hw):
            result = evaluate(cfg, predict, engine, args.artifact)
        figures = {**result.as_dict(), "precision": predict.precision}
    print(result)
    save_json(args, figures)
    return 0
