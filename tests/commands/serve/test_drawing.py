"""What the page draws, without the page."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dmd2_jax.commands.serve.drawing import Drawer
from dmd2_jax.commands.serve.subjects import Request, open_run_folder
from dmd2_jax.config.refused import Refused
from dmd2_jax.weights.state_dict import read_safetensors, write_safetensors
from tests.tiny import contents, dmd2, student_run, teacher_run


@pytest.fixture(scope="module")
def drawer() -> Drawer:
    return Drawer(open_run_folder(str(student_run())))


def test_run_offers_its_networks_classes_averages_and_steps(drawer: Drawer) -> None:
    offer = drawer.subject.offer
    assert offer.networks == ("teacher", "student") and not offer.of_prompts
    assert [value for _, value in offer.classes] == [f"#{i}" for i in range(10)]
    assert offer.averages == (0.9,)
    assert offer.steps == {"teacher": 2}  # a student of one step has no choice
    assert offer.guidance is None  # of a teacher that has learned without


def test_run_of_a_teacher_offers_the_teacher_alone() -> None:
    offer = open_run_folder(str(teacher_run())).offer
    assert offer.networks == ("teacher",) and offer.averages == ()


@pytest.mark.parametrize(
    ("network", "ema", "words"),
    [
        ("student", None, ()),
        ("student", 0.9, ("--ema=0.9",)),
        ("teacher", None, ("--which=teacher",)),
    ],
)
def test_pictures_are_those_of_sample_to_the_bit(
    network: str, ema: float | None, words: tuple[str, ...], drawer: Drawer, tmp_path: Path
) -> None:
    drawn = drawer.draw(network, Request("3", seed=7, num=4, ema=ema))
    asked = (f"--workdir={student_run()}", "--classes=3", "--seed=7", "--num=4")
    assert dmd2("sample", *asked, *words, f"--out={tmp_path / 'x.npz'}") == 0
    there = np.load(tmp_path / "x.npz")
    assert drawn.images.dtype == np.uint8 and np.ptp(drawn.images) > 10
    np.testing.assert_array_equal(drawn.images, there["arr_0"])
    assert there["arr_1"].tolist() == [3] * 4 and drawn.captions == ["3"] * 4


def test_no_class_is_all_by_turns(drawer: Drawer) -> None:
    assert drawer.draw("student", Request("", num=4)).captions == ["0", "1", "2", "3"]


def test_program_is_compiled_once_a_shape_and_kept(drawer: Drawer) -> None:
    request = Request("1", num=3)
    assert drawer.must_compile("student", request)
    first = drawer.draw("student", request)
    assert first.compiling > 0 and first.seconds > 0 and first.calls == 1
    # Another class, seed or average is no other program.
    for other in (request._replace(what="2"), request._replace(seed=5, ema=0.9)):
        assert not drawer.must_compile("student", other)
        assert drawer.draw("student", other).compiling == 0
    assert drawer.must_compile("student", request._replace(num=5))


def test_steps_are_the_teachers_and_change_its_pictures(drawer: Drawer) -> None:
    few, usual, more = (
        drawer.draw("teacher", Request("3", num=4, steps=steps)) for steps in (None, 2, 3)
    )
    assert (few.calls, usual.calls, more.calls) == (3, 3, 5)
    np.testing.assert_array_equal(few.images, usual.images)
    assert np.any(few.images != more.images)
    assert not drawer.must_compile("student", Request("3", num=4, steps=3))


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request("10"), "classes=10 is no class, expected class numbers in 0..9"),
        (Request("cat"), "classes=cat is no class"),
        (Request(seed=-1), "seed=-1, expected a whole number in 0..4294967295"),
        (Request(seed=2**32), "seed=4294967296, expected"),
        (Request(seed=1.5), "seed=1.5, expected a whole number"),  # type: ignore[arg-type]
        (Request(seed=None), "seed=None, expected a whole number"),  # type: ignore[arg-type]
        (Request(num=0), "num=0 pictures, expected 1 to 16"),
        (Request(num=17), "num=17 pictures, expected 1 to 16"),
        (Request(steps=0), "steps=0, expected 1 to 1000"),
        (Request(steps=10**6), "steps=1000000, expected 1 to 1000"),
        (Request(ema=0.5), "ema=0.5, expected one of (0.9,)"),
    ],
)
def test_request_that_cannot_be_is_refused_in_words(
    request_: Request, words: str, drawer: Drawer
) -> None:
    for refuse in (drawer.subject.check, lambda it: drawer.draw("student", it)):
        with pytest.raises(Refused) as error:
            refuse(request_)
        assert str(error.value).startswith(words)


def test_run_without_weights_yet_is_refused_until_they_come(tmp_path: Path) -> None:
    run = tmp_path / "student"
    weights = ("*.safetensors", "checkpoints")
    shutil.copytree(student_run(), run, ignore=shutil.ignore_patterns(*weights))
    drawer, request = Drawer(open_run_folder(str(run))), Request("3", seed=7, num=4)
    with pytest.raises(Refused, match="no weights at .*student.safetensors"):
        drawer.draw("student", request)
    file = "student.safetensors"
    write_safetensors(read_safetensors(student_run() / "student_ema_0.9.safetensors"), run / file)
    before = drawer.draw("student", request).images
    shutil.copy(student_run() / file, run / file)  # as a run that goes on writes them anew
    after = drawer.draw("student", request).images
    assert np.any(before != after)


def test_teacher_that_is_gone_is_refused_and_the_student_drawn(tmp_path: Path) -> None:
    run = tmp_path / "student"
    shutil.copytree(student_run(), run, ignore=shutil.ignore_patterns("checkpoints"))
    config = run / "config.json"
    record = json.loads(config.read_text().replace(str(teacher_run()), str(tmp_path / "gone")))
    del record["seal"]  # by which an edited config is accepted
    config.write_text(json.dumps(record))
    drawer = Drawer(open_run_folder(str(run)))
    with pytest.raises(Refused, match="no weights at .*gone"):
        drawer.draw("teacher", Request(num=4))
    assert len(drawer.draw("student", Request(num=4)).images) == 4


def test_drawing_writes_nothing(drawer: Drawer) -> None:
    before = contents(student_run())
    drawer.draw("student", Request(num=4))
    assert contents(student_run()) == before
