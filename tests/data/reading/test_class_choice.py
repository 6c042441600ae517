"""Classes by number and by name."""

import pytest

from dmd2_jax.data.reading.class_choice import chosen_classes

NAMES = ("ant", "cat", "dog")


def test_chosen_classes_takes_numbers_and_names() -> None:
    assert chosen_classes(["2", "ant", "#1", 0], 3, NAMES) == (2, 0, 1, 0)
    assert chosen_classes(["2", "0"], 3, None) == (2, 0)


def test_chosen_classes_takes_a_number_that_is_a_name_alone() -> None:
    assert chosen_classes(["7", "1", "#2"], 3, ("5", "7", "9")) == (1, 1, 2)


@pytest.mark.parametrize(
    ("words", "names", "message"),
    [
        (["dogg"], NAMES, r"classes=dogg is no class.*0\.\.2 or their names.*nearest.* are 'dog'"),
        (["3"], NAMES, r"classes=3 is no class, expected class numbers in 0\.\.2 or their names"),
        (["cat"], None, r"classes=cat is no class.*0\.\.2 \(no names are recorded\)"),
        (["1"], ("0", "2", "1"), r"classes=1 means two: number 1 is '2'.*has number 2.*#1 or #2"),
        ([], NAMES, "names none"),
        (["-1"], None, r"0\.\.2"),
    ],
)
def test_chosen_classes_refuses(words: list[str], names: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chosen_classes(words, 3, names)
