"""Heights and widths in text and in recipes."""

import pytest

from dmd2_jax.config.load import apply_overrides, from_plain, load_config, plain
from dmd2_jax.config.sizes import read_sizes, say_sizes, sides, sizes_of


@pytest.mark.parametrize(
    "text, value, shapes",
    [
        ("64", 64, (64,)),
        ("64x64", 64, (64,)),
        ("96x128", (96, 128), ((96, 128),)),
        ("(96, 128)", (96, 128), ((96, 128),)),
        ("64,96x128", ((64, 64), (96, 128)), (64, (96, 128))),
        ("64,32", ((64, 64), (32, 32)), (64, 32)),
    ],
)
def test_shapes_are_read_and_said(text: str, value: object, shapes: tuple) -> None:
    assert read_sizes(text) == value and sizes_of(value) == shapes
    assert read_sizes(say_sizes(value)) == value
    assert sides(value) == sides(shapes[0])


@pytest.mark.parametrize("text", ["", "x", "64x", "0", "-4", "6.5", "64,64", "2x3x4", "(1,2,3)"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        read_sizes(text)


def test_config_has_shapes_through_flags_and_json() -> None:
    config = load_config("sdxl_four_step")
    apply_overrides(config, {"model.resolution": "96x128,128x96"})
    assert from_plain(plain(config)).model.resolution == ((96, 128), (128, 96))
    with pytest.raises(ValueError, match=r"config.model.resolution='none', expected a number"):
        apply_overrides(config, {"model.resolution": "none"})
