"""Latency of exported models on one CPU thread, measured in turns:

    python benchmarks/bm_deploy.py FLOAT_DIR INT8_DIR PRUNED_INT8_DIR

The others are compared with the first one. A model is exported for the image size of
``TestReader``; this override changes it, also in the artifact's reader:

    slim-det export -c CONFIG -o weights=PATH 'TestReader.inputs_def.image_shape=[3,320,320]'
"""

import argparse
import platform
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from slim_det.core.process import prepare_process


def main() -> None:
    """Measure and print one row per model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifacts", nargs="*", metavar="DIR", help="folders written by export")
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--network_only",
        action="store_true",
        help="without decoding and NMS, whose time depends on the number of boxes",
    )
    args = parser.parse_args()
    if not args.artifacts:
        print("bm_deploy: nothing measured; give the folders of exported models to compare")
        return
    prepare_process()

    import paddle

    from slim_det.core.errors import SlimDetError
    from slim_det.deploy.latency import compare_latency
    from slim_det.graph.engine import cpu_has_int8
    from slim_det.version import __version__

    print(
        f"slim_det {__version__}, python {platform.python_version()}, paddle {paddle.__version__}, "
        f"{platform.machine()}, oneDNN with{'' if cpu_has_int8() else 'out'} int8 instructions, "
        f"{args.threads} thread(s), median of {args.runs} runs in turns"
        f"{', without decoding and NMS' if args.network_only else ''}"
    )
    try:
        rows = compare_latency(
            args.artifacts, args.runs, args.threads, network_only=args.network_only
        )
    except SlimDetError as error:
        print(f"bm_deploy: error: {error}", file=sys.stderr)
        sys.exit(2)
    for row in rows:
        print(
            f"{row.artifact} ({row.precision}): {row.latency_ms:.2f} ms (p10 {row.p10_ms:.2f}, p90 "
            f"{row.p90_ms:.2f}), {row.speedup:.2f}x"
        )


if __name__ == "__main__":
    main()
