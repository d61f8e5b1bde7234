"""`slim-det widerface`: WIDER FACE AP from detection files."""

from __future__ import annotations

import argparse

from slim_det.cli.common import add_json_argument, save_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "--pred", required=True, metavar="DIR", help="detections, one EVENT/NAME.txt per image"
    )
    parser.add_argument(
        "--ground_truth",
        required=True,
        metavar="DIR_OR_TXT",
        help="folder of the official .mat files, or wider_face_val_bbx_gt.txt (height bands)",
    )
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluate and print one line."""
    from slim_det.evaluate.widerface.scores import evaluate_folder

    result = evaluate_folder(args.pred, args.ground_truth)
    print(result)
    save_json(args, result.as_dict())
    return 0
