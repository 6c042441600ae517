"""The same of prompts; skipped where torch, diffusers or transformers is missing."""

from pathlib import Path

import numpy as np
import pytest

from dmd2_jax.commands.serve.drawing import Drawer
from dmd2_jax.commands.serve.subjects import Request, open_pipeline_folder, open_run_folder
from dmd2_jax.config.refused import Refused
from dmd2_jax.run.folder import open_run
from tests.pipelines import tiny_pipeline
from tests.tiny import dmd2, teacher_run
from tests.training.test_text_training import get_config

PROMPT = "a handwritten three"
REQUEST = Request(PROMPT, seed=3, num=2, steps=2, guidance=3.0)


@pytest.fixture(scope="module")
def drawer() -> Drawer:
    return Drawer(open_pipeline_folder(str(tiny_pipeline("sd15"))))


def test_pipeline_offers_prompts_steps_and_guidance(drawer: Drawer) -> None:
    offer = drawer.subject.offer
    assert offer.networks == ("teacher",) and offer.of_prompts
    assert offer.steps == {"teacher": 50} and offer.guidance == 7.5


def test_pictures_of_a_pipeline_are_those_of_sample(drawer: Drawer, tmp_path: Path) -> None:
    drawn = drawer.draw("teacher", REQUEST)
    assert drawn.calls == 4  # two passes a step
    asked = (f"--pipeline={tiny_pipeline('sd15')}", f"--prompt={PROMPT}", "--seed=3", "--num=2")
    out = tmp_path / "x.npz"
    assert dmd2("sample", *asked, "--steps=2", "--guidance=3", f"--out={out}") == 0
    np.testing.assert_array_equal(drawn.images, np.load(out)["arr_0"])
    assert not drawer.must_compile("teacher", REQUEST._replace(what="another", seed=9))
    assert drawer.must_compile("teacher", REQUEST._replace(guidance=4.0))
    other = drawer.draw("teacher", REQUEST._replace(negative="the digit two")).images
    assert np.any(other != drawn.images)


def test_prompts_are_refused_in_words(drawer: Drawer) -> None:
    for request, words in (
        (REQUEST._replace(guidance=-1.0), "guidance=-1.0, expected 0 or more"),
        (REQUEST._replace(guidance=1.0, negative="x"), "which is no guidance"),
        (REQUEST._replace(what="a\0b"), "U\\+0000"),
    ):
        with pytest.raises(Refused, match=words):
            drawer.subject.check(request)


def test_run_of_prompts_draws_its_teacher_before_it_has_a_student(
    drawer: Drawer, tmp_path: Path
) -> None:
    run, config = tmp_path / "run", get_config()
    config.model.pipeline = str(tiny_pipeline("sd15"))
    open_run(run, "distill", config.to_dict())
    of_run = Drawer(open_run_folder(str(run)))
    offer = of_run.subject.offer
    assert offer.networks == ("teacher", "student") and offer.of_prompts
    with pytest.raises(Refused, match="no weights at"):
        of_run.draw("student", REQUEST)
    # Its teacher is the pipeline's network.
    images, those = (it.draw("teacher", REQUEST).images for it in (of_run, drawer))
    np.testing.assert_array_equal(images, those)


def test_pipeline_of_a_run_of_classes_is_refused() -> None:
    with pytest.raises(Refused, match="which draws classes"):
        open_run_folder(str(teacher_run()), pipeline=str(tiny_pipeline("sd15")))


def test_page_of_prompts_has_their_fields(drawer: Drawer) -> None:
    pytest.importorskip("gradio", reason="needs the extra [serve]")
    from dmd2_jax.commands.serve.page import page
    from dmd2_jax.commands.serve.server import quiet_gradio

    with quiet_gradio():
        blocks = page(drawer, None).blocks.values()
    fields = {it.label: it.value for it in blocks if getattr(it, "label", None)}
    assert {"Prompt", "Away from (negative prompt)"} <= fields.keys() and "Class" not in fields
    assert fields["Steps of the teacher"] == 50 and fields["Guidance of the teacher"] == 7.5
    assert fields["Pictures"] == 1
