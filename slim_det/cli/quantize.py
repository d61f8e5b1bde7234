"""`slim-det quantize`: converts a trained float detector to int8 with a few images."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slim_det.cli import common
from slim_det.core.errors import ConfigError, QuantError

if TYPE_CHECKING:
    import paddle

    from slim_det.compress.quantize.observers import PtqOptions
    from slim_det.compress.quantize.settings import QuantSettings
    from slim_det.training.config import SlimConfig

CHECKPOINT = "quantized"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    common.add_config_arguments(parser)
    parser.add_argument(
        "--observer", metavar="NAME",
        help="how ranges are chosen: abs_max, avg, moving_average, kl, hist (default), mse, emd",
    )  # fmt: skip
    parser.add_argument(
        "--images", type=int, metavar="N",
        help="calibrate on the first N images of TrainDataset (default 32)",
    )  # fmt: skip
    parser.add_argument(
        "--weight_type", metavar="TYPE",
        help="ranges of weights: channel_wise_abs_max (default) or abs_max",
    )  # fmt: skip
    parser.add_argument(
        "--skip", nargs="+", metavar="LAYER", help="names or globs of layers to keep in float"
    )
    parser.add_argument(
        "--bias_correction", action="store_true",
        help="correct biases by the mean quantization error of each channel",
    )  # fmt: skip
    parser.add_argument(
        "--max_drop", type=float, metavar="P",
        help="put layers back to float until at most P points of the metric are lost (WIDER "
        "FACE: in each of easy, medium and hard)",
    )  # fmt: skip
    common.add_export_arguments(parser)
    parser.add_argument("--report", action="store_true", help="print a table of all layers")
    common.add_save_dir_argument(parser, CHECKPOINT)
    common.add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Calibrate, quantize, put layers back to float if requested, export and save."""
    from slim_det.core.files import output_folders
    from slim_det.deploy.export_keys import check_export_keys
    from slim_det.deploy.preprocessing import check_test_reader
    from slim_det.detectors.image_size import target_size_hw
    from slim_det.evaluate.data.check import check_dataset

    _check_flags(args)
    cfg, slim = common.read_configs(args)
    if not args.no_eval:
        check_dataset(cfg, "EvalDataset")
    check_export_keys(cfg)
    model, settings, options = _prepare(args, cfg, slim)
    stem = Path(args.save_dir or cfg.save_dir) / cfg.filename / CHECKPOINT
    check_test_reader(cfg, target_size_hw(cfg))
    _check_names(model, settings, options)
    with output_folders(stem.parent, args.output_dir):
        figures = _quantize(args, cfg, model, settings, options, stem)
    print(_summary(figures))
    common.save_json(args, figures)
    return 0


def _quantize(
    args: argparse.Namespace,
    cfg: Any,
    model: paddle.nn.Layer,
    settings: QuantSettings,
    options: PtqOptions,
    stem: Path,
) -> dict[str, Any]:
    """Quantize, export and save a model; returns the results with their JSON keys."""
    from slim_det.compress.quantize.ptq import run_ptq
    from slim_det.compress.steps import steps_of
    from slim_det.deploy.accuracy_control import DeployedMetric, search_float_layers
    from slim_det.deploy.artifact import export_model
    from slim_det.evaluate.evaluation import POINTS
    from slim_det.report.quantization import layer_rows, report_table
    from slim_det.training import checkpoint

    metric = None if args.no_eval else DeployedMetric(model, cfg)
    in_float = metric.in_float() if metric else None
    if in_float is not None:
        print(f"float: {in_float}")
    ptq = run_ptq(model, cfg, settings, options)
    if args.max_drop is not None and metric and in_float:
        search_float_layers(metric, ptq, in_float, args.max_drop)
    rows = layer_rows(model, ptq.quantization_errors)
    if args.report:
        common.print_table(report_table(rows))
    max_gap = None if args.no_eval else args.max_gap
    float_ap = in_float.ap if in_float else None
    exported = export_model(model, cfg, args.output_dir, max_gap=max_gap, in_float=float_ap)
    checkpoint.save_weights(stem, model.state_dict(), steps_of(model))
    drop = None
    if in_float is not None and exported.ap is not None:
        drop = POINTS * (in_float.ap - exported.ap)
    return {
        **exported.as_dict(),
        "layers_int8": sum(not row.reason for row in rows),
        "checkpoint": str(checkpoint.params_path(stem)),
        "ap_float": float_ap,
        "per_class_float": in_float.per_class if in_float else None,
        "drop": drop,
        "latency_ms_float": in_float.latency_ms if in_float else None,
        "observer": options.observer,
        "images": options.images,
        "layers": [row.as_dict() for row in rows],
    }


def _check_flags(args: argparse.Namespace) -> None:
    """Check the flags before anything is read."""
    if args.max_drop is not None and not 0 <= args.max_drop <= 100:
        raise ConfigError(f"--max_drop {args.max_drop:g}: expected points of the metric, 0 to 100")
    if args.max_drop is not None and args.no_eval:
        raise ConfigError("--max_drop needs the metric: it cannot be combined with --no_eval")


def _prepare(
    args: argparse.Namespace, cfg: Any, slim: SlimConfig | None
) -> tuple[paddle.nn.Layer, QuantSettings, PtqOptions]:
    """The float model, settings and options; flags override the slim file."""
    from slim_det.compress.quantize.observers import PtqOptions
    from slim_det.compress.quantize.ptq import require_float
    from slim_det.compress.quantize.record import QuantRecord
    from slim_det.compress.quantize.settings import QuantSettings
    from slim_det.compress.quantize.strategy import PTQ
    from slim_det.compress.strategy import postponed
    from slim_det.core.schema import validated
    from slim_det.training import checkpoint, session

    if slim is not None and "PTQ" not in slim.strategies:
        raise ConfigError(f"--slim_config '{slim.path}': expected slim: PTQ")
    given = {"observer": args.observer, "images": args.images}
    flags = {name: value for name, value in given.items() if value is not None}
    if args.bias_correction:
        flags["bias_correction"] = True
    replace(PtqOptions(), **flags).check("--")
    if args.weight_type:
        validated(QuantSettings, {"weight_type": args.weight_type}, "--")
    if cfg.get("weights") and checkpoint.stored_step(cfg.weights, QuantRecord) is not None:
        raise QuantError(f"'{cfg.weights}' are quantized already; expected float weights")
    model = session.model_with_weights(cfg, cfg.get("weights"), slim, calibrating=True)
    require_float(model)
    described = postponed(model)
    settings, options = QuantSettings(), PtqOptions()
    if isinstance(described, PTQ):
        settings = described.settings
        options = described.options(int(cfg["EvalReader"].get("batch_size", 1)))
    if args.weight_type:
        settings = replace(settings, weight_type=args.weight_type)
    if args.skip:
        settings = replace(settings, skip=(*settings.skip, *args.skip))
    return model, settings, replace(options, **flags)


def _check_names(model: paddle.nn.Layer, settings: QuantSettings, options: PtqOptions) -> None:
    """Check before the float model is measured that layers and images exist."""
    from slim_det.compress.images import calibration_images
    from slim_det.core.errors import LayerError
    from slim_det.detectors.layer_finder import LayerFinder

    finder = LayerFinder(model)
    for name in settings.skip:
        try:
            finder.find(name)
        except LayerError as error:
            raise ConfigError(f"skip: {error}") from error
    calibration_images(options.images, "--images")


def _summary(figures: dict[str, Any]) -> str:
    """A human-readable summary."""
    from slim_det.evaluate.evaluation import POINTS

    kept = len(figures["layers_float"])
    lines = [
        f"{figures['layers_int8']} layers in int8, {kept} in float; {figures['observer']} on "
        f"{figures['images']} images; {figures['checkpoint']}"
    ]
    if figures["drop"] is not None:
        lines.append(
            f"metric {figures['ap_float']:.4f} in float, {figures['ap']:.4f} in int8: "
            f"{abs(figures['drop']):.2f} points {'less' if figures['drop'] >= 0 else 'more'}"
        )
        changes = (
            f"{name} {POINTS * (value - figures['per_class_float'][name]):+.2f}"
            for name, value in figures["per_class"].items()
        )
        lines.append(f"points by class or setting: {', '.join(changes)}")
    return "\n".join(lines)
