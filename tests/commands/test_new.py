"""`dmd2 new`: what it finds in data, the recipe that it writes, and what it refuses."""

import shlex
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from dmd2_jax.commands.new.look import Facts
from dmd2_jax.commands.new.propose import Machine, propose
from dmd2_jax.config import defaults
from dmd2_jax.config.load import load_config
from dmd2_jax.families.edm import settings
from dmd2_jax.recipe.open import build_family, check, open_recipe
from tests.data.images import picture, png, write_folder, write_zip
from tests.data.test_idx import content
from tests.tiny import contents, dmd2, refused

CPU, CHIP = Machine("2 CPU cores", 1, chips=False), Machine("6 x chip", 6, chips=True)


def photographs(
    channels: int = 3, *, classes: bool = True, differ: bool = True
) -> dict[str, bytes]:
    """24 images, of two classes and of sizes that differ, or not."""
    files = {}
    for i in range(24):
        image = picture(i, side=16 + (i % 3 if differ else 0), channels=channels)
        name = f"{('cat', 'dog')[i % 2]}/{i:02d}.png" if classes else f"{i:02d}.png"
        files[name] = png(image[:16] if i % 3 == 1 and differ else image)
    return files


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def made(*words: str | Path) -> ConfigDict:
    """Run `dmd2 new`, and load the recipe as the next command does, with what the data say."""
    assert dmd2("new", *words) == 0
    config = load_config("my_recipe.py")
    assert config.model.image_channels is config.model.num_classes is None
    return open_recipe(config, config.distill.batch_size).config


def facts(side: int) -> Facts:
    sizes = np.full((4, 2), side)
    return Facts("image_folder", "x", "x", 2000, sizes, 3, 5, None, ())


@pytest.mark.parametrize("write", [write_folder, write_zip])
def test_new_writes_a_recipe_of_classes_and_sizes_that_differ(tmp_path: Path, write) -> None:
    path = write(tmp_path / "pets.zip", photographs())
    config = made(f"--data={path}")
    assert (config.data.name, config.data.path) == ("image_folder", str(path))
    assert (config.data.resize, config.model.resolution) == ("crop", 16)
    assert (config.model.image_channels, config.model.num_classes) == (3, 2)
    assert (config.name, config.model.attention_resolutions) == ("my_recipe", (4,))
    text = Path("my_recipe.py").read_text()
    assert "# Classes: 0 cat, 1 dog." in text
    assert text.startswith(
        '"""24 images of 2 classes, up to 18 x 18 pixels, colour, resized to 16 x'
    )


def test_new_writes_a_recipe_of_grey_images_of_one_size_without_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_folder(tmp_path / "x", photographs(1, classes=False, differ=False))
    config = made(f"--data={path}")
    assert (config.data.resize, config.model.resolution) == ("none", 16)
    assert (config.model.image_channels, config.model.num_classes) == (1, 0)
    # Without classes there is no classifier of them to measure by.
    assert "dmd2 sample        --workdir=runs/my_recipe_student" in capsys.readouterr().out


def test_what_new_prints_passes_a_dry_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(tmp_path / "my pets", photographs())
    config = made("--data=my pets")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  dmd2 ")]
    teach, distil, last = (shlex.split(line)[1:] for line in lines)
    assert dmd2(*teach, "--dry_run") == 0
    # A teacher whose every weight is 0.
    family = build_family(config)
    zeros = jax.tree.map(lambda it: np.zeros(it.shape, it.dtype), family.param_shapes())
    Path("runs/my_recipe_teacher").mkdir(parents=True, exist_ok=True)
    family.save(zeros, Path("runs/my_recipe_teacher/teacher.safetensors"))
    assert dmd2(*distil, "--dry_run") == 0
    assert last[0] == "evaluate" and last[1] in distil


def test_new_knows_other_files_by_what_they_are(tmp_path: Path) -> None:
    images = np.stack([picture(i, side=28, channels=1)[..., 0] for i in range(20)])
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(20) % 4)
    (tmp_path / "idx").mkdir()
    labels = (np.arange(20) % 4).astype(np.uint8)
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        (tmp_path / "idx" / f"train-{kind}-ubyte").write_bytes(content(array))
    for name, path in (("arrays", "x.npz"), ("idx", "idx")):
        config = made(f"--data={path}", "--overwrite")
        assert (config.data.name, config.model.resolution, config.data.resize) == (name, 28, "none")
        assert config.model.channel_mult == (1, 2, 4)
        assert (config.model.image_channels, config.model.num_classes) == (1, 4)


def test_new_takes_a_source_without_files_and_a_resolution() -> None:
    config = made("--source=digits", "--resolution=16")
    assert (config.data.name, config.data.path) == ("digits", "")
    assert (config.model.resolution, config.data.resize) == (16, "enlarge")
    assert config.model.num_classes == 10


def test_new_writes_over_nothing_unless_it_is_told_to(capsys: pytest.CaptureFixture[str]) -> None:
    Path("my_recipe.py").write_text("mine")
    message = refused(capsys, "new", "--source=digits")
    assert "--out=my_recipe.py is there" in message and "--overwrite" in message
    assert Path("my_recipe.py").read_text() == "mine"
    assert made("--source=digits", "--overwrite").model.resolution == 8


def test_new_dry_run_prints_the_recipe_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert dmd2("new", "--source=digits", "--dry_run") == 0
    printed = capsys.readouterr().out
    assert contents(tmp_path) == {}
    assert made("--source=digits").model.resolution == 8
    assert Path("my_recipe.py").read_text() == printed


def test_new_quotes_names_that_would_end_a_text() -> None:
    path = write_folder(Path('a"""b\\n'), photographs())
    assert made(f"--data={path}").data.path == str(path)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a.txt": b"x"}, "has no images (but 1 .txt)"),
        ({"a.png": png(picture(0))}, "has 1 image, expected at least 10"),
        (
            {f"{i:02d}.png": png(picture(i, channels=3 if i == 21 else 1)) for i in range(50)},
            "21.png has colour, unlike the others",
        ),
        ({f"{i:02d}.png": png(picture(i, side=5)) for i in range(20)}, "images of 5 pixels"),
        ({"manifest.json": b"{}"}, "is a cache of latents"),
        ({"dataset_info.json": b"{}"}, "--source=tfds:NAME"),
    ],
)
def test_new_says_what_is_wrong_with_data(
    tmp_path: Path, files: dict[str, bytes], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_folder(tmp_path / "x", files)
    message = refused(capsys, "new", f"--data={path}")
    assert expected in message and "config.data" not in message
    assert not Path("my_recipe.py").exists()


def test_new_says_what_is_wrong_with_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert "expected one; add --data=FOLDER" in refused(capsys, "new")
    assert "--data=nowhere does not exist" in refused(capsys, "new", "--data=nowhere")
    line = ("new", "--source=digits")
    assert "expected a Python file" in refused(capsys, *line, "--out=recipe")
    for side in (63, 4096):
        assert f"--resolution={side}, expected 8 to 1024" in refused(
            capsys, *line, f"--resolution={side}"
        )
    assert "--source='digit', expected" in refused(capsys, "new", "--source=digit")


def test_new_notes_images_that_are_few_or_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_folder(tmp_path / "x", photographs() | {"cat/99.png": b"no image"})
    made(f"--data={path}")
    said = capsys.readouterr().out
    assert "25 images are few" in said
    assert "1 of 25 images looked at cannot be decoded" in said and "cat/99.png" in said


@pytest.mark.parametrize("machine", [CPU, CHIP])
@pytest.mark.parametrize("side", [8, 12, 16, 28, 32, 36, 48, 64, 96, 100, 500])
def test_propose_makes_a_config_that_is_sound(side: int, machine: Machine) -> None:
    values = {}
    for group in propose(facts(side), machine):
        values |= group.values
    config = defaults.get_config()
    config.update_from_flattened_dict(values)
    check(config)
    model = config.model
    assert not list(settings.faults(model.to_dict()))
    assert model.resolution <= side and model.resolution <= (64 if machine.chips else 32)
    assert (config.data.resize == "none") == (model.resolution == side)
    assert model.attention_resolutions  # there is a level that can attend
    for batch in (config.teacher.batch_size, config.distill.batch_size):
        assert batch % machine.devices == 0
