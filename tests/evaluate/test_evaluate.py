"""`dmd2 evaluate`: what it measures, against what, and what it refuses."""

import contextlib
import functools
import io
import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from dmd2_jax import data
from dmd2_jax.data import to_model, to_uint8
from dmd2_jax.evaluate.options import metric_names
from dmd2_jax.metrics.features import inception
from dmd2_jax.metrics.features.moments import feature_statistics, fid
from dmd2_jax.metrics.features.real import open_reference
from dmd2_jax.metrics.features.resize import prepare
from dmd2_jax.pictures.grids import montage
from dmd2_jax.recipe.open import uniform_labels
from dmd2_jax.sampling.runs import open_run
from dmd2_jax.sampling.samplers import sample_images, student_sampler
from tests.data.images import edm_files, picture, png, write_folder, write_zip
from tests.tiny import RECIPE, dmd2, refused, scratch, student_run

EVERY = ("fid", "kid", "inception_score", "precision_recall", "density_coverage", "diversity")


@functools.cache
def run() -> Path:
    """The run folder that these tests evaluate; the classifier that they share is kept in it."""
    workdir = scratch() / "run"
    shutil.copytree(student_run(), workdir)
    return workdir


@functools.cache
def plain() -> tuple[dict, str]:
    """What the command writes and prints without further flags, on all eight devices."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert dmd2("evaluate", f"--workdir={run()}") == 0
    return json.loads((run() / "metrics.json").read_text()), printed.getvalue()


def evaluate(*words: str | Path) -> dict:
    """Run the command and return the figures it writes."""
    out = scratch() / "figures.json"
    assert dmd2("evaluate", *words, f"--out={out}") == 0
    return json.loads(out.read_text())


@functools.cache
def several() -> dict:
    """Many metrics of the student, in one pass."""
    return evaluate(f"--workdir={run()}", "--which=student", f"--metrics={','.join(EVERY)}")


@functools.cache
def student_images() -> tuple[np.ndarray, np.ndarray]:
    """The images that the student makes of seed 0, and the classes."""
    student = open_run(run())
    family, labels = student.family, uniform_labels(60, student.family.num_classes)
    sampler = student_sampler(family, student.config)
    made = sample_images(sampler, family, student.load(), labels, seed=0, batch_size=30)
    return np.asarray(to_uint8(made)), labels


@pytest.fixture
def means(monkeypatch: pytest.MonkeyPatch) -> str:
    """Put a feature network into Inception's place: the mean colour, of a patch if it is one."""

    def apply(resize, params, images):
        x = prepare("patch", images) if resize == "patch" else to_model(images)
        features = jnp.broadcast_to(x.mean(axis=(1, 2)), (len(x), 3)) * params["scale"]
        return features, features

    monkeypatch.setattr(inception, "_apply", apply)
    monkeypatch.setattr(inception, "FEATURES", 3)
    monkeypatch.setattr("dmd2_jax.evaluate.spaces.read_inception", lambda path: {"scale": 1.0})
    return "--inception_weights=mean.pth"


def test_evaluate_prints_a_table_and_writes_the_figures() -> None:
    metrics, text = plain()
    assert metrics["teacher_nfe"] == 3  # Heun with 2 steps
    assert metrics["student_nfe"] == metrics["student_ema_0.9_nfe"] == 1
    for name in ("teacher", "student", "student_ema_0.9"):
        assert metrics[f"{name}_num_samples"] == 60
        assert metrics[f"{name}_fid"] > metrics["real_fid_floor"] > 0  # barely trained
        assert f"{metrics[f'{name}_fid']:.3f}" in text
    assert metrics["classifier_test_accuracy"] > 0.9
    assert metrics["devices"] == {"platform": "cpu", "kind": "cpu", "number": 8, "processes": 1}
    assert text.count("±: one standard deviation") == 1


def test_evaluate_draws_real_images_and_those_of_each_network_below_them() -> None:
    plain()
    drawn = np.asarray(Image.open(run() / "compared.png"))
    images, labels = student_images()
    row = montage(images[10:20], 1, 10)
    left = drawn.shape[1] - row.shape[1] - 8
    there = drawn[:, left:-8]
    tops = [top for top in range(len(there) - 47) if np.array_equal(there[top : top + 48], row)]
    assert len(tops) == 1 and tops[0] > len(there) / 2  # below real and teacher
    real = data.to_memory(data.load(open_run(run()).config.data, "all", 8))
    for column, label in enumerate(labels[:10]):
        tile = there[8:56, 52 * column : 52 * column + 48][::6, ::6, :1]
        assert (real.images[real.labels == label] == tile).all(axis=(1, 2, 3)).any()


def test_evaluate_gives_the_figures_of_all_images_in_memory_at_once() -> None:
    reference = open_reference(open_run(run()).config, run() / "classifier")
    images, labels = student_images()
    features, logits = reference.classifier(images)
    expected = {
        "fid": fid(reference.statistics, feature_statistics(features)),
        "class_accuracy": (logits.argmax(axis=-1) == labels).mean(),
    }
    for key, value in expected.items():
        assert plain()[0][f"student_{key}"] == pytest.approx(value, rel=1e-5), key


def test_evaluate_on_one_device_equals_eight() -> None:
    """FID to 1e-4 of it."""
    words = [f"--workdir={run()}", "--which=student", f"--metrics={','.join(EVERY)}"]
    one = evaluate(*words, "--devices=1")
    assert one["student_fid"] == pytest.approx(several()["student_fid"], rel=1e-4)
    for key in ("kid", "inception_score", "precision", "coverage", "diversity"):
        assert one[f"student_{key}"] == pytest.approx(several()[f"student_{key}"], rel=1e-3), key


def test_evaluate_does_not_depend_on_the_batch_size() -> None:
    got = evaluate(f"--workdir={run()}", "--which=student", "--batch_size=24")
    assert got["student_fid"] == pytest.approx(plain()[0]["student_fid"], rel=1e-5)


def test_evaluate_depends_on_the_seed() -> None:
    got = evaluate(f"--workdir={run()}", "--which=student", "--seed=1")
    assert got["student_fid"] != pytest.approx(plain()[0]["student_fid"], rel=1e-3)


@pytest.mark.parametrize(
    ("words", "key", "same"),
    [
        (["--which=teacher"], "teacher", "teacher"),
        (["--ema=0.9"], "student_ema_0.9", "student_ema_0.9"),
        (["--checkpoint=4"], "student_checkpoint_4", "student"),
        (["--weights={run}/student_ema_0.9.safetensors"], "student", "student_ema_0.9"),
    ],
)
def test_evaluate_measures_the_network_that_is_named(words, key, same) -> None:
    words = [word.replace("{run}", str(run())) for word in words]
    got = evaluate(f"--workdir={run()}", *words)
    assert [name for name in got if name.endswith("_fid")] == [f"{key}_fid"]
    assert got[f"{key}_fid"] == pytest.approx(plain()[0][f"{same}_fid"], rel=1e-6)


def test_all_checkpoints_are_measured_and_drawn() -> None:
    out = scratch() / "figures.json"
    words = [f"--workdir={run()}", "--all_checkpoints", f"--out={out}"]
    assert dmd2("evaluate", *words) == 0
    got = json.loads(out.read_text())
    values = [got["student_checkpoint_2_fid"], got["student_checkpoint_4_fid"]]
    assert values[1] == pytest.approx(plain()[0]["student_fid"], rel=1e-6)
    assert values[0] != pytest.approx(values[1], rel=1e-4)
    assert np.asarray(Image.open(out.with_name("fid_checkpoints.png"))).std() > 0


def test_all_checkpoints_without_fid_say_that_nothing_is_drawn(caplog, tmp_path) -> None:
    out = tmp_path / "figures.json"
    words = ["--all_checkpoints", "--metrics=diversity", "--num=20", f"--out={out}"]
    assert dmd2("evaluate", f"--workdir={run()}", *words) == 0
    assert (
        "fid_checkpoints.png will not be drawn: it is of FID, and diversity is not" in caplog.text
    )
    assert list(tmp_path.iterdir()) == [out]


def test_several_metrics_of_one_pass_equal_each_alone() -> None:
    plain()
    for name, key in (("precision_recall", "recall"), ("diversity", "diversity"), ("kid", "kid")):
        got = evaluate(f"--workdir={run()}", "--which=student", f"--metrics={name}")
        assert got[f"student_{key}"] == pytest.approx(several()[f"student_{key}"], rel=1e-6), key
        assert "student_fid" not in got
    assert several()["student_fid"] == pytest.approx(plain()[0]["student_fid"], rel=1e-6)


def test_a_network_s_images_in_a_zip_have_its_figures() -> None:
    images, _ = student_images()
    files = {f"{i:02d}.png": png(image) for i, image in enumerate(images)}
    path = write_zip(scratch() / "samples.zip", files)
    plain()
    got = evaluate(f"--images={path}", f"--workdir={run()}")
    assert got["images_num_samples"] == 60
    assert got["images_fid"] == pytest.approx(plain()[0]["student_fid"], rel=1e-5)


def test_images_of_an_npz_have_the_figures_of_a_folder(means, tmp_path) -> None:
    pixels = np.stack([picture(i) for i in range(9)])
    labels = np.arange(9) % 3
    folder = write_folder(tmp_path / "made", edm_files(labels.tolist()))
    np.savez(tmp_path / "made.npz", arr_0=pixels, arr_1=labels)
    np.savez_compressed(tmp_path / "real.npz", arr_0=pixels[::2] // 2, mu_s=np.zeros(4))
    write_folder(tmp_path / "real", {f"{i}.png": png(pixels[i] // 2) for i in range(0, 9, 2)})
    words = ["--features=inception", means, "--metrics=fid,kid,diversity"]
    sides = [(folder, tmp_path / "real"), (tmp_path / "made.npz", tmp_path / "real.npz")]
    found = [evaluate(f"--images={a}", f"--reference={b}", *words) for a, b in sides]
    figures = [f"images_{name}" for name in ("fid", "kid", "diversity", "num_samples")]
    assert [found[0][key] for key in figures] == pytest.approx([found[1][key] for key in figures])
    assert found[0]["images_fid"] > 0 and found[1]["reference"] == "real.npz"


def test_a_reference_of_statistics_and_images_is_read_as_adm_reads_it(
    means, tmp_path, caplog
) -> None:
    """mu and sigma for FID, the images where a metric needs them; which is said."""
    real = np.stack([picture(i) for i in range(9)])
    mu, sigma = np.zeros(3), np.eye(3)
    np.savez(tmp_path / "both.npz", arr_0=real, mu=mu, sigma=sigma)
    np.savez(tmp_path / "alone.npz", mu=mu, sigma=sigma)
    np.savez(tmp_path / "made.npz", arr_0=real)
    words = [f"--images={tmp_path / 'made.npz'}", "--features=inception", "--resize=edm", means]
    got = [evaluate(*words, f"--reference={tmp_path / f'{n}.npz'}") for n in ("both", "alone")]
    assert got[0]["images_fid"] == got[1]["images_fid"] > 1
    assert "both.npz has mu and sigma" not in caplog.text
    both = evaluate(*words, f"--reference={tmp_path / 'both.npz'}", "--metrics=fid,kid")
    assert both["images_fid"] == pytest.approx(0, abs=1e-6)
    assert "both.npz has mu and sigma, and images: the images are used for all" in caplog.text


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"arr_0": np.zeros((3, 8, 8, 3), np.float32)}, "float32, expected uint8 in 0..255"),
        ({"arr_0": np.zeros((3, 3, 8, 8), np.uint8)}, "(3, 3, 8, 8), expected [n, h, w, c]"),
        ({"pictures": np.zeros((3, 8, 8, 3), np.uint8)}, "expected images under one of the names"),
        ({"arr_0": np.array([None, 3], object)}, "holds Python objects, which could run code"),
    ],
)
def test_an_npz_of_other_things_is_refused(arrays, message, means, tmp_path, capsys) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    words = [f"--images={tmp_path / 'x.npz'}", "--features=inception", means, "--reference=x"]
    assert message in refused(capsys, "evaluate", *words)


def test_num_of_a_folder_draws_so_many_by_the_seed(means, tmp_path) -> None:
    pictures = {f"{i:02d}.png": png(picture(i)) for i in range(9)}
    folder = write_folder(tmp_path / "made", pictures)
    words = [f"--images={folder}", f"--reference={folder}", "--features=inception", means]
    first, again, other = (
        evaluate(*words, "--num=5", f"--seed={seed}")["images_fid"] for seed in (0, 0, 1)
    )
    assert first == again != other
    assert evaluate(*words)["images_fid"] == pytest.approx(0, abs=1e-8)


def test_written_statistics_are_a_reference(tmp_path) -> None:
    plain()
    path = tmp_path / "digits.npz"
    words = [f"--workdir={run()}", "--which=student"]
    evaluate(*words, f"--write_reference={path}")
    with np.load(path) as entries:
        assert entries["mu"].shape == (48,) and entries["count"] == 1797
    got = evaluate(*words, f"--reference={path}")
    assert got["student_fid"] == pytest.approx(plain()[0]["student_fid"], rel=1e-9)
    assert got["reference"] == "digits.npz" and "real_fid_floor" not in got


def test_statistics_of_another_extractor_are_refused(means, tmp_path, capsys) -> None:
    folder = write_folder(tmp_path / "made", {f"{i}.png": png(picture(i)) for i in range(4)})
    path = tmp_path / "real.npz"
    words = [f"--reference={folder}", "--features=inception", means, f"--write_reference={path}"]
    assert dmd2("evaluate", *words, "--resize=edm") == 0
    words = [f"--images={folder}", f"--reference={path}", "--features=inception", means]
    message = refused(capsys, "evaluate", *words, "--resize=clean_fid")
    assert "real.npz" in message
    assert "made by extractor 'inception_v3/edm', expected 'inception_v3/clean_fid'" in message


def test_statistics_of_images_of_another_size_are_refused(means, tmp_path, capsys) -> None:
    small, large = (
        write_folder(tmp_path / str(side), {f"{i}.png": png(picture(i, side)) for i in range(4)})
        for side in (8, 16)
    )
    path = tmp_path / "real.npz"
    words = ["--features=inception", means]
    assert dmd2("evaluate", f"--reference={small}", *words, f"--write_reference={path}") == 0
    assert evaluate(f"--images={small}", f"--reference={path}", *words)["images_fid"] < 1e-8
    message = refused(capsys, "evaluate", f"--images={large}", f"--reference={path}", *words)
    assert "16 has images of resolution 16, expected 8 as the images that statistics" in message
    assert str(path) in message


def test_inception_measures_a_recipe_s_weights_against_its_data(means) -> None:
    """The whole way of published figures, with means of grey in place of Inception's features."""
    words = [f"--config={RECIPE}", f"--weights={run()}/student.safetensors"]
    got = evaluate(*words, "--features=inception", means, "--resize=clean_fid")
    images, _ = student_images()
    real = data.load(open_run(run()).config.data, "all", 8).examples(np.arange(1797))["image"]
    sides = [
        feature_statistics(np.repeat(side.mean(axis=(1, 2)) / 127.5 - 1, 3, axis=1))
        for side in (real, images)
    ]
    assert got["student_fid"] == pytest.approx(fid(*sides), rel=1e-4)
    assert got["extractor"] == "inception_v3/clean_fid"


def test_patch_fid_is_of_the_centre_at_full_resolution(means, tmp_path) -> None:
    shape, random = (12, 303, 303, 3), np.random.RandomState(0)
    tints = random.randint(0, 200, (2, 12, 1, 1, 3))
    sides = [(tint + random.randint(0, 56, shape)).astype(np.uint8) for tint in tints]
    folders = [
        write_folder(tmp_path / name, {f"{i:02d}.png": png(image) for i, image in enumerate(side)})
        for name, side in zip(("real", "made"), sides, strict=True)
    ]
    words = [f"--reference={folders[0]}", f"--images={folders[1]}", means]
    got = evaluate(*words, "--metrics=patch_fid")
    centres = [(side[:, 2:301, 2:301].astype(np.float64) - 128) / 128 for side in sides]
    expected = fid(*(feature_statistics(centre.mean(axis=(1, 2))) for centre in centres))
    assert got["images_patch_fid"] == pytest.approx(expected, rel=1e-4)
    assert "images_fid" not in got


def test_few_samples_are_warned_of_with_the_bias(caplog) -> None:
    evaluate(f"--workdir={run()}", "--which=student", "--num=40")
    (message,) = [r.message for r in caplog.records if r.name == "dmd2_jax.evaluate.spaces"]
    assert "student.safetensors: FID of 40 generated samples in 48 dimensions: about" in message


def test_too_few_samples_are_refused(capsys) -> None:
    message = refused(capsys, "evaluate", f"--workdir={run()}", "--which=student", "--num=5")
    assert "5 generated samples for FID in 48 dimensions, expected at least 6" in message


def test_weights_whose_images_are_not_finite_are_named(capsys, tmp_path) -> None:
    tensors = load_file(run() / "student.safetensors")
    name = next(name for name in tensors if name.endswith("final_layer.linear.weight"))
    broken = tmp_path / "broken.safetensors"
    save_file(tensors | {name: np.full_like(tensors[name], 3e38)}, broken)
    message = refused(capsys, "evaluate", f"--workdir={run()}", f"--weights={broken}")
    assert f"{broken}" in message and "NaN" in message


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.txt": b""}, "has no file ending in .png"),
        ({f"{i}.png": png(picture(i, 9, 1)) for i in range(8)}, "(1, 9, 9, 1), expected"),
        ({f"{i}.png": png(picture(i)) for i in range(8)}, "(1, 8, 8, 3), expected"),
        ({"0.png": png(picture(0, 8, 1)), "1.png": b"no image"}, "1.png"),
        ({"0.png": png(picture(0, 8, 1)), "1.png": png(picture(0, 9, 1))}, "1.png is 9 x 9"),
    ],
)
def test_folders_that_do_not_fit_are_refused_by_name(
    files, message, capsys, caplog, tmp_path
) -> None:
    plain()
    folder = write_folder(tmp_path / "samples", files)
    text = refused(capsys, "evaluate", f"--images={folder}", f"--workdir={run()}")
    assert message in text and "samples" in text
    for word in ("config.data", "BytesIO", "takes its place"):
        assert word not in text + caplog.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to measure, expected --workdir=RUN"),
        (["--workdir={run}", "--metrics=fids"], "did you mean 'fid'"),
        (["--workdir={run}", "--config=digits"], "--workdir and --config together"),
        (["--workdir={run}", "--config.seed=1"], "--config.seed without --config=FILE"),
        (["--workdir={run}", "--features=inception"], "Inception without --inception_weights"),
        (["--workdir={run}", "--resize=edm"], "--resize=edm with --features=classifier"),
        (
            ["--workdir={run}", "--metrics=clip_score"],
            "clip_score without --clip, --images or --prompts",
        ),
        (
            ["--workdir={run}", "--metrics=seed_diversity", "--reference=x.zip"],
            "classes have numbers of their own, expected the recipe's data",
        ),
        (["--workdir={run}", "--ema=0.5"], "expected one of optim.ema_decays=(0.9,)"),
        (["--workdir={run}", "--checkpoint=3"], "expected one of [2, 4]"),
        (["--workdir={run}", "--which=teacher", "--checkpoint=4"], "expected the student that"),
        (["--workdir={run}", "--devices=99"], "--devices=99, expected 1..8"),
        (["--workdir={run}", "--num=0"], "--num: '0', expected a whole number from 1"),
        (["--workdir={run}", "--seed=-1"], "--seed=-1, expected 0..4294967295"),
        (["--workdir={run}", "--out=no/such/x.json"], "expected no/such"),
        (["--images=x", "--checkpoint=4"], "--checkpoint with --images"),
        (["--images=nowhere"], "'nowhere' do not exist"),
        (["--config=digits", "--weights=nowhere"], "no weights at nowhere"),
        (["--weights=nowhere"], "without a recipe"),
        (["--workdir={run}", "--reference=x.npz", "--write_reference=y.npz"], "copy the file"),
        (["--workdir={run}", "--write_reference=y"], "ending in .npz"),
        (
            ["--metrics=fid,patch_fid", "--inception_weights=x", "--write_reference=y.npz"],
            "--metrics=fid,patch_fid, which are of two feature networks, expected one",
        ),
    ],
)
def test_evaluate_refuses(words, message, capsys) -> None:
    words = [word.replace("{run}", str(run())) for word in words]
    assert message in refused(capsys, "evaluate", *words)


def test_statistics_do_not_do_for_metrics_of_neighbours(capsys) -> None:
    plain()
    words = [f"--workdir={run()}", "--metrics=kid", "--reference=real.npz"]
    message = refused(capsys, "evaluate", *words)
    assert "--metrics=kid with --reference=real.npz, which has mean and covariance" in message


def test_a_folder_needs_something_to_compare_with(means, tmp_path, capsys) -> None:
    folder = write_folder(tmp_path / "made", {f"{i}.png": png(picture(i)) for i in range(4)})
    words = [f"--images={folder}", "--features=inception", means]
    assert "nothing to compare with" in refused(capsys, "evaluate", *words)


def test_help_names_every_metric(capsys) -> None:
    assert dmd2("evaluate", "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert all(name in text for name in metric_names())


def test_figures_of_other_sets_are_kept_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {f"{i}.png": png(picture(i, 8, 1)) for i in range(8)}
    folder, out = write_folder(tmp_path / "images", files), tmp_path / "figures.json"
    former = {"student_num_samples": 60, "student_fid": 1.5}
    out.write_text(json.dumps(former))
    words = (f"--images={folder}", f"--workdir={run()}", "--metrics=diversity", f"--out={out}")
    for _ in range(2):  # what is measured again is replaced
        assert dmd2("evaluate", *words) == 0
        assert json.loads((tmp_path / "figures_before.json").read_text()) == former
        assert json.loads(out.read_text())["images_num_samples"] == 8
    assert capsys.readouterr().err.count("had figures of other sets; they are in") == 1
