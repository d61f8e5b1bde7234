"""Script that runs Paddle-Lite's converter and x86 runtime in a separate process.

Paddle and Paddle-Lite crash in the same process, so this file imports neither Paddle nor slim_det,
and any interpreter that has the package `paddlelite` can run it::

    python runner.py convert MODEL PARAMS OUT_STEM TARGET FP16
    python runner.py run NB_FILE INPUTS.npz OUTPUTS.npz

Arrays are exchanged as `.npz` files with keys ``<run>/<input name>`` and ``<run>/<output index>``.
"""

from __future__ import annotations

import sys

import numpy as np
from paddlelite.lite import MobileConfig, Opt, create_paddle_predictor


def convert(model: str, params: str, out_stem: str, target: str, fp16: bool) -> str:
    """Convert a program to Paddle-Lite's format, as ``OUT_STEM.nb``.

    Args:
        model: ``.pdmodel`` file.
        params: ``.pdiparams`` file.
        out_stem: Path of the new file without ``.nb``.
        target: ``arm`` or ``x86``.
        fp16: Whether the ARM kernels compute in half precision.

    Returns:
        The converter's version.
    """
    opt = Opt()
    opt.set_model_file(model)
    opt.set_param_file(params)
    opt.set_optimize_out(out_stem)
    opt.set_model_type("naive_buffer")
    if fp16:
        opt.enable_fp16()
    opt.set_valid_places(target)
    opt.run()
    return str(opt.version())


def run(nb_file: str, inputs: str, outputs: str) -> int:
    """Run a converted model on every set of inputs.

    Args:
        nb_file: A model converted for ``x86``.
        inputs: ``.npz`` file with every input of the model for one or more runs.
        outputs: ``.npz`` file to write.

    Returns:
        The number of runs.
    """
    config = MobileConfig()
    config.set_model_from_file(nb_file)
    predictor = create_paddle_predictor(config)
    names = predictor.get_input_names()
    found = {}
    with np.load(inputs) as arrays:
        count = len({key.split("/")[0] for key in arrays.files})
        for number in range(count):
            for place, name in enumerate(names):
                value = np.ascontiguousarray(arrays[f"{number}/{name}"])
                predictor.get_input(place).from_numpy(value)
            predictor.run()
            for place in range(len(predictor.get_output_names())):
                # A view of memory that the next run overwrites.
                found[f"{number}/{place}"] = predictor.get_output(place).numpy().copy()
    np.savez(outputs, **found)
    return count


def main(arguments: list[str]) -> int:
    """Run one command and print its result as the last line of stdout."""
    command, *rest = arguments
    if command == "convert":
        model, params, out_stem, target, fp16 = rest
        print(convert(model, params, out_stem, target, fp16 == "1"))
    elif command == "run":
        nb_file, inputs, outputs = rest
        print(run(nb_file, inputs, outputs))
    else:
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
