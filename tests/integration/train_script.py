"""A training script of its own, of the kind that `python -m slim_det SCRIPT` is for.

It knows nothing of slim_det: it reads its flags, loads the configuration, lets ppdet apply the
slim file, and trains, in the order in which PaddleDetection's scripts do.
"""

import argparse

import yaml
from ppdet.core.workspace import load_config, merge_config
from ppdet.engine import Trainer
from ppdet.slim import build_slim_model


def overrides(texts):
    """Nested settings from `Key.sub=value` texts."""
    tree = {}
    for text in texts:
        path, _, value = text.partition("=")
        *parents, last = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = yaml.safe_load(value)
    return tree


parser = argparse.ArgumentParser()
parser.add_argument("-c", "--config", required=True)
parser.add_argument("--slim_config")
parser.add_argument("-r", "--resume")
parser.add_argument("--eval", action="store_true")
parser.add_argument("-o", "--opt", nargs="*", default=[])
flags = parser.parse_args()

cfg = load_config(flags.config)
merge_config(overrides(flags.opt))
if flags.slim_config:
    cfg = build_slim_model(cfg, flags.slim_config)
merge_config(overrides(flags.opt))

trainer = Trainer(cfg, mode="train")
if flags.resume:
    trainer.resume_weights(flags.resume)
elif cfg.get("pretrain_weights"):
    trainer.load_weights(cfg.pretrain_weights)
trainer.train(flags.eval)
