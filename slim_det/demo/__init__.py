"""Detection data that the code draws itself, so that nothing has to be downloaded."""

from slim_det.demo.scene import CLASS_NAMES
from slim_det.demo.shapes import ShapesDataSet, draw_shapes

__all__ = ["CLASS_NAMES", "ShapesDataSet", "draw_shapes"]
