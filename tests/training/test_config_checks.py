"""Readers, optimizers and schedules are checked before ppdet builds them."""

from __future__ import annotations

from typing import Any

import pytest
from ppdet.optimizer.optimizer import LinearWarmup

from slim_det.core.errors import ConfigError
from slim_det.training.config_checks import check_parts


def reader(*steps: Any, **settings: Any) -> dict[str, Any]:
    return {"TrainReader": {"sample_transforms": list(steps), **settings}}


def optimizer(**settings: Any) -> dict[str, Any]:
    return {"OptimizerBuilder": {"optimizer": settings}}


def builder(**settings: Any) -> dict[str, Any]:
    return {"OptimizerBuilder": settings}


def schedules(*settings: Any) -> dict[str, Any]:
    return {"LearningRate": {"schedulers": list(settings)}}


def rate(base_lr: Any) -> dict[str, Any]:
    return {"LearningRate": {"base_lr": base_lr}}


DECAY, WARMUP = {"name": "PiecewiseDecay", "milestones": [1]}, {"name": "LinearWarmup", "steps": 1}


@pytest.mark.parametrize(
    "cfg",
    [
        {},
        {"TrainReader": {}, "OptimizerBuilder": {}, "LearningRate": {}},
        dict.fromkeys(("exclude_nms", "exclude_post_process", "export_onnx", "export_eb"), False),
        {"epoch": 1, "snapshot_epoch": 5, "log_iter": 1, "worker_num": 0, "num_classes": 1},
        reader({"Decode": {}}, {"RandomFlip": {"prob": 0.5}}, batch_size=1),
        {"TrainReader": {"batch_transforms": [{"PadBox": {"num_max_boxes": 5}}]}},
        optimizer(type="Momentum", momentum=0.9, use_nesterov=True),
        optimizer(type="AdamW", weight_decay=0.1, param_groups=[{"params": ["head"]}]),
        optimizer(type="RMSProp", rho=0.9, epsilon=1e-6),
        optimizer(type="AdamWDL", layerwise_decay=0.75, num_layers=12),
        schedules(DECAY, WARMUP),
        schedules({"name": "CosineDecay", "use_warmup": False, "max_epochs": 5}),
        schedules(object()),
        {"save_dir": "1e3", "filename": "5", "EvalDataset": {"anno_path": "2007"}},
        rate(0),
        rate(1e-3),
        rate(1e30),
        optimizer(type="Momentum", momentum=1),
        reader({"Decode": {}}, mixup_epoch=5, shuffle=True, inputs_def={"num_max_boxes": 50}),
        {"TestReader": {"fuse_normalize": True, "inputs_def": {"image_shape": [3, 96, 96]}}},
        {"EvalReader": {"sample_transforms": None, "inputs_def": None, "collate_batch": False}},
        builder(regularizer={"type": "L1", "factor": 0.1}, clip_grad_by_norm=35),
        builder(regularizer=None, clip_grad_by_value=None),
        builder(regularizer=False),
        builder(regularizer="None"),
        {"EvalDataset": {"name": "VOCDataSet", "anno_path": "val.txt", "sample_num": 3}},
        {"EvalDataset": {"name": "OfSomebody", "folder": "x"}, "TestDataset": object()},
    ],
)
def test_valid(cfg: dict[str, Any]) -> None:
    check_parts(cfg)


@pytest.mark.parametrize(
    ("cfg", "said"),
    [
        ({"exclude_nms": True}, "exclude_nms: True is not supported; expected false: models are"),
        ({"exclude_post_process": "yes"}, "exclude_post_process: 'yes' is not supported; expected"),
        ({"export_onnx": True}, "export_onnx: True is not supported; expected false: models are"),
        ({"export_eb": 1}, "export_eb: 1 is not supported; expected false"),
        (reader({"Decoed": {}}), "TrainReader.sample_transforms: unknown name 'Decoed'; did you"),
        (reader({"RandomFlip": {"probb": 1}}), "RandomFlip: unknown key 'probb'; did you mean"),
        (reader({"Decode": 3}), "Decode: expected a mapping of keys, found 3"),
        (
            {"EvalReader": {"batch_transforms": [{"PadBoxes": {}}]}},
            "EvalReader.batch_transforms: unknown name 'PadBoxes'; did you mean 'PadBox'?",
        ),
        ({"TestReader": {"fuse_normalise": True}}, "did you mean 'fuse_normalize'?"),
        ({"EvalReader": {"batch_sizes": 4}}, "EvalReader: unknown key 'batch_sizes'; did you mean"),
        ({"EvalReader": 7}, "EvalReader: expected a mapping of keys, found 7"),
        (reader(shuffle="no"), "TrainReader.shuffle: 'no' is not valid; expected true or false"),
        (reader(drop_last=1), "TrainReader.drop_last: 1 is not valid; expected true or false"),
        (reader(inputs_def=5), "TrainReader.inputs_def: 5 is not valid; expected keys and values"),
        (
            {"TestReader": {"inputs_def": {"image_shpe": [3, 96, 96]}}},
            "TestReader.inputs_def: unknown key 'image_shpe'; did you mean 'image_shape'?",
        ),
        (
            {"TrainReader": {"sample_transforms": 5}},
            "TrainReader.sample_transforms: 5 is not valid; expected a list of transforms",
        ),
        (
            reader({"Decode": {}}, "Permute"),
            "TrainReader.sample_transforms: [{'Decode': {}}, 'Permute'] is not valid; expected a",
        ),
        (reader(batch_size=0), "TrainReader.batch_size: 0 is not valid"),
        (optimizer(type="Adamm"), "OptimizerBuilder.optimizer: unknown name 'Adamm'; did you mean"),
        (optimizer(type="Momentum", momentums=1), "did you mean 'momentum'?"),
        (optimizer(type="SGD", learning_rate=1), "SGD: unknown key 'learning_rate'"),
        (
            schedules({**DECAY, "milestone": 1}),
            "unknown key 'milestone'; did you mean 'milestones'",
        ),
        (schedules({"gamma": 0.1}), "unknown name 'None'"),
        (schedules(WARMUP, DECAY), "'LinearWarmup' comes first; expected a decay before it"),
        (schedules(DECAY), "nothing comes after 'PiecewiseDecay'; expected a LinearWarmup, or"),
        (
            {"EvalDataset": {"name": "WIDERFaceDataSet", "anno_pat": "x"}},
            "EvalDataset: WIDERFaceDataSet: unknown key 'anno_pat'; did you mean 'anno_path'?",
        ),
        ({"epoch": "many"}, "epoch: 'many' is not valid; expected a whole number >= 1"),
        ({"epoch": 0}, "epoch: 0 is not valid"),
        ({"epoch": True}, "epoch: True is not valid"),
        ({"worker_num": -1}, "worker_num: -1 is not valid; expected a whole number >= 0"),
        (rate("1e30"), "LearningRate.base_lr: '1e30' is text; expected a number, such as 1.0e+30"),
        (rate("5"), "LearningRate.base_lr: '5' is text; expected a number, such as 5"),
        (rate("high"), "LearningRate.base_lr: 'high' is not valid; expected a finite number"),
        (rate(None), "LearningRate.base_lr: None is not valid"),
        (rate(float("inf")), "LearningRate.base_lr: inf is not valid"),
        (
            schedules({**DECAY, "gamma": "1e-1"}, WARMUP),
            "LearningRate.schedulers[0].gamma: '1e-1' is text; expected a number, such as 0.1",
        ),
        (
            schedules(DECAY, LinearWarmup(start_factor="1e-1")),
            "LearningRate.schedulers[1].LinearWarmup.start_factor: '1e-1' is text",
        ),
        (
            schedules({"name": "CosineDecay", "max_epochs": "few"}, WARMUP),
            "LearningRate.schedulers: CosineDecay.max_epochs: 'few' is text; expected a number",
        ),
        (
            {"OptimizerBuilder": {"regularizer": {"type": "L2", "factor": "5e-4"}}},
            "OptimizerBuilder.regularizer.factor: '5e-4' is text; expected a number, such as",
        ),
        (optimizer(type="Momentum", momentum=".9"), "OptimizerBuilder.optimizer.momentum: '.9' is"),
        ({"OptimizerBuilder": 5}, "OptimizerBuilder: expected a mapping of keys, found 5"),
        (builder(optimizer=5), "OptimizerBuilder.optimizer: 5 is not valid; expected keys"),
        (builder(regularizer=5), "OptimizerBuilder.regularizer: expected a mapping of keys"),
        (builder(regularizer={"type": "L2"}), "OptimizerBuilder.regularizer.factor is missing"),
        (
            builder(regularizer={"type": "L3", "factor": 0.1}),
            "OptimizerBuilder.regularizer.type: 'L3' is not valid; expected L1 or L2",
        ),
        (
            builder(regularizer={"type": "L2", "factor": "abc"}),
            "OptimizerBuilder.regularizer.factor: 'abc' is not valid; expected a finite number",
        ),
        (
            builder(clip_grad_by_norm="abc"),
            "OptimizerBuilder.clip_grad_by_norm: 'abc' is not valid; expected a finite number, or",
        ),
        ({"LearningRate": 7}, "LearningRate: expected a mapping of keys, found 7"),
        ({"LearningRate": {"schedulers": 7}}, "schedulers: 7 is not valid; expected a list of"),
        (schedules(7), "LearningRate.schedulers: 7 is not valid; expected a schedule such as"),
        (optimizer(type="Momentum", momentum="big"), "Momentum.momentum: 'big' is text; expected"),
        (
            reader({"Resize": {"target_size": [96, "+96"]}}),
            "TrainReader.sample_transforms[0].Resize.target_size[1]: '+96' is text",
        ),
        (
            reader({"Resize": {"target_size": [96, 96]}}),
            "TrainReader.sample_transforms: Resize.keep_ratio is missing",
        ),
        ({"ema_decay": "1e-4"}, "ema_decay: '1e-4' is text; expected a number, such as 0.0001"),
    ],
)
def test_mistake(cfg: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_parts(cfg)
    assert said in str(caught.value)
