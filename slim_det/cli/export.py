"""`slim-det export`: writes the artifact to deploy, checked against the model."""

from __future__ import annotations

import argparse

from slim_det.cli import common
from slim_det.cli.export_lite import add_lite_arguments, check_lite_arguments, export_lite


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of PaddleDetection's export script, and those of int8 and Paddle-Lite."""
    common.add_config_arguments(parser)
    common.add_image_arguments(parser)
    common.add_export_arguments(parser)
    add_lite_arguments(parser)
    common.add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Export and check the model."""
    from slim_det.compress.quantize.record import record_of
    from slim_det.core.files import output_folders
    from slim_det.deploy.artifact import export_model
    from slim_det.deploy.lite.forms import require_one_size
    from slim_det.evaluate.data.image_files import find_images
    from slim_det.training import session

    cfg, slim = common.read_configs(args)
    images = None
    if args.infer_img or args.infer_dir:
        images = find_images(args.infer_img, args.infer_dir)
    model = session.model_with_weights(cfg, cfg.get("weights"), slim)
    if args.lite:
        require_one_size(cfg)
    check_lite_arguments(args, "float32" if record_of(model) is None else "int8")
    max_gap = None if args.no_eval else args.max_gap
    with output_folders(args.output_dir):
        result = export_model(model, cfg, args.output_dir, images, max_gap)
    figures = result.as_dict()
    lite = export_lite(args, model, cfg, result.artifact)
    if lite is not None:
        figures["lite"] = lite
    common.save_json(args, figures)
    return 0
