"""At which size a detector can be compared in Paddle-Lite on x86."""

from __future__ import annotations

import paddle
import pytest

from slim_det.deploy.lite.forms import surrogate_size


class Strided(paddle.nn.Layer):
    """Halves the image several times; a head of one value for each channel may follow."""

    def __init__(self, halvings: int, pooled: bool = False) -> None:
        super().__init__()
        layers = [paddle.nn.Conv2D(3, 3, 3, 2, 1) for _ in range(halvings)]
        if pooled:
            layers += [paddle.nn.AdaptiveAvgPool2D(1), paddle.nn.Conv2D(3, 3, 1)]
        self.layers = paddle.nn.Sequential(*layers)
        self.eval_size = [320, 320]

    def forward(self, inputs: dict[str, paddle.Tensor]) -> paddle.Tensor:
        return self.layers(inputs["image"])


@pytest.mark.parametrize(
    ("halvings", "size_hw", "expected"),
    [
        (5, (320, 416), (384, 512)),
        (5, (256, 128), (256, 128)),
        (6, (320, 320), (512, 512)),
        (6, (256, 512), (256, 512)),
        (9, (300, 300), None),
    ],
)
def test_maps_have_a_multiple_of_16_values(
    halvings: int, size_hw: tuple[int, int], expected: tuple[int, int] | None
) -> None:
    assert surrogate_size(Strided(halvings), size_hw) == expected


def test_a_single_value_is_no_map() -> None:
    model = Strided(5, pooled=True)
    assert surrogate_size(model, (100, 100)) == (128, 128)
    assert model.eval_size == [320, 320]
