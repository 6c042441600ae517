"""What is no path of this machine is never taken for one."""

import pytest

from dmd2_jax.config.refused import pip_install
from tests.tiny import RECIPE, refused

T = f"--config={RECIPE}"
PATHS = {
    "train-teacher": [T, "--workdir=@", "--dry_run"],
    "distill": [T, "--workdir=@"],
    "make-pairs": [T, "--out=@"],
    "ablate": [f"--config={RECIPE.with_name('tiny_ablation.py')}", "--workdir=@", "--dry_run"],
    "demo": ["--workdir=@"],
    "sample": ["--pipeline=base", "--prompt=a", "--out=@"],
    "evaluate": ["--images=x", "--reference=y", "--out=@"],
    "cache": ["--pipeline=base", "--prompts=p.txt", "--out=@"],
    "export": ["--weights=w.safetensors", "--pipeline=base", "--times=999", "--out=@"],
    "convert": ["w.safetensors", "@"],
    "data": [T, "--write=@"],
    "report": ["--workdir=run", "--out=@"],
}
"""Of each command that writes, a line with a place to write to."""

READ = [
    ["sample", "--workdir=@"],
    ["sample", "--workdir=run", "--weights=@"],
    ["evaluate", "--images=@", "--reference=y"],
    ["evaluate", "--images=x", "--reference=@"],
    ["report", "--workdir=run", "--workdir=@"],
    ["convert", "@", "w.safetensors"],
    *(
        ["train-teacher", T, "--workdir=run", "--dry_run", f"--config.{key}=@"]
        for key in ("data.path", "data.prompts", "teacher.weights", "distill.pairs")
    ),
]


@pytest.mark.parametrize("scheme", ["ftp", "gs"])
@pytest.mark.parametrize("words", [[c, *words] for c, words in PATHS.items()] + READ, ids=" ".join)
def test_a_place_that_cannot_be_reached_is_refused_before_work(
    words, scheme, tmp_path, monkeypatch, capsys
):
    """Once gs://bucket/x was taken for a folder "gs:" of this machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dmd2_jax.runtime.places._installed", lambda package: False)
    message = refused(capsys, *(word.replace("@", f"{scheme}://bucket/x") for word in words))
    expected = (
        pip_install("cloud") if scheme == "gs" else "expected a path of this machine, gs://BUCKET"
    )
    assert f"{scheme}://bucket/x" in message and expected in message
    assert not list(tmp_path.iterdir())
