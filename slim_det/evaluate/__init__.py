"""Boxes of any engine against the labels of a data set: COCO, VOC and WIDER FACE."""
