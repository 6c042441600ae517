"""`dmd2 cache`: what it writes, how it goes on, and what it refuses."""

import functools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmd2_jax.config.sizes import Sizes
from dmd2_jax.data import Options, batches_from, labels_of, latents
from dmd2_jax.data.reading.sealed_shards import PLAN, read_manifest
from dmd2_jax.families.stable_diffusion import family as stable_diffusion
from dmd2_jax.runtime.integrity import sealed
from dmd2_jax.weights.state_dict import read_safetensors, write_safetensors
from tests.compiling import flags
from tests.data.images import picture, write_folder
from tests.pipelines import CAPTIONS, COUNT, RESOLUTION, photo, photos, tiny_pipeline
from tests.tiny import RECIPE, cache_folder, contents, dmd2, refused, scratch

SIZES = ("--batch_size=4", "--shard_examples=4")
EXACT = ("--store=float32", "--latents=mean")


def words(kind: str, out: Path, *more: object) -> list[object]:
    return ["cache", f"--pipeline={tiny_pipeline(kind)}", f"--out={out}", *SIZES, *more]


@functools.cache
def made(kind: str, *more: str) -> Path:
    """A finished cache; do not change it."""
    out = scratch() / "cache"
    assert dmd2(*words(kind, out, f"--images={photos()}", *more)) == 0
    return out


def source(folder: Path, split: str = "all", size: Sizes = RESOLUTION // 2) -> latents.Latents:
    return latents.load(str(folder), split, size, Options())


def everything(folder: Path) -> dict[str, np.ndarray]:
    opened = source(folder)
    return opened.examples(np.arange(len(opened)))


@functools.cache
def pipeline(kind: str):
    import diffusers

    return diffusers.DiffusionPipeline.from_pretrained(tiny_pipeline(kind))


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_cache_holds_the_latents_of_torchs_autoencoder(kind: str) -> None:
    import torch

    # of images that are neither resized nor cut
    images = np.stack([photo(i) for i in range(2)]).astype(np.float32) / 127.5 - 1
    vae = pipeline(kind).vae
    with torch.no_grad():
        mean = vae.encode(torch.from_numpy(images).permute(0, 3, 1, 2)).latent_dist.mean
    expected = (mean * vae.config.scaling_factor).permute(0, 2, 3, 1).numpy()
    actual = everything(made(kind, *EXACT))["latent"][:2]
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_cache_holds_the_embeddings_of_the_torch_pipeline(kind: str) -> None:
    import torch

    with torch.no_grad():
        out = pipeline(kind).encode_prompt(
            list(CAPTIONS[:COUNT]),
            device="cpu",
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
    batch = everything(made(kind, *EXACT))
    np.testing.assert_allclose(batch["prompt_embeds"], out[0].numpy(), atol=1e-5)
    if kind == "sdxl":
        np.testing.assert_allclose(batch["pooled"], out[2].numpy(), atol=1e-5)


def test_cache_stores_half_precision_by_default() -> None:
    exact, half = everything(made("sdxl", *EXACT)), everything(made("sdxl", "--latents=mean"))
    for name in exact:
        rounded = exact[name].astype(np.float16).astype(np.float32)
        np.testing.assert_allclose(half[name], rounded, rtol=1e-3, atol=1e-6)
    layout = read_manifest(made("sdxl", "--latents=mean")).layout.arrays
    assert {layout[name][1] for name in ("latent", "prompt_embeds", "pooled")} == {"float16"}


def test_cache_samples_with_the_autoencoders_deviation() -> None:
    import torch

    vae = pipeline("sd15").vae
    images = np.stack([photo(i) for i in range(2)]).astype(np.float32) / 127.5 - 1
    with torch.no_grad():
        std = vae.encode(torch.from_numpy(images).permute(0, 3, 1, 2)).latent_dist.std
    std = std.permute(0, 2, 3, 1).numpy() * vae.config.scaling_factor
    mean = everything(made("sd15", *EXACT))["latent"][:2]
    sample = everything(made("sd15", "--store=float32"))["latent"][:2]
    eps = (sample - mean) / std  # 512 draws
    assert abs(eps.mean()) < 0.2 and 0.85 < eps.std() < 1.15


def test_cache_draws_by_the_number_of_the_example(tmp_path: Path) -> None:
    # other batches and shards, the same draws
    more = ("--store=float32", "--batch_size=2", "--shard_examples=7")
    assert dmd2(*words("sd15", tmp_path / "c", f"--images={photos()}", *more)) == 0
    expected = everything(made("sd15", "--store=float32"))["latent"]
    np.testing.assert_allclose(everything(tmp_path / "c")["latent"], expected, atol=1e-5)


def test_cache_keeps_the_captions() -> None:
    assert source(made("sdxl", *EXACT)).captions([3, 1]) == [CAPTIONS[3], CAPTIONS[1]]


def test_cache_asks_as_a_student_is_asked() -> None:
    time_ids = everything(made("sdxl", *EXACT))["time_ids"]
    assert np.unique(time_ids, axis=0).tolist() == [[16, 16, 0, 0, 16, 16]]


def test_cache_records_actual_sizes_where_it_is_told() -> None:
    time_ids = everything(made("sdxl", "--sizes=actual"))["time_ids"]
    # photo 9 is 20 high and 24 wide: 16 x 19 (19.2) resized, whose columns 1..16 are kept
    assert time_ids[9].tolist() == [20, 24, 0, 1, 16, 16]


def test_cache_of_several_shapes_records_each_images_own_conditions() -> None:
    made_both = made("sdxl", "--sizes=actual", "--resolution=16,16x20")
    both = source(made_both, size=((8, 8), (8, 10)))
    square, wide = both.buckets[8], both.buckets[8, 10]
    # photo 9 is 20 high and 24 wide: 17 x 20 (16.7) resized, whose rows 0..15 are kept
    row = wide.captions(range(len(wide))).index(CAPTIONS[9])
    assert wide.examples(np.array([row]))["time_ids"].tolist() == [[20, 24, 0, 0, 16, 20]]
    time_ids = square.examples(np.arange(len(square)))["time_ids"]
    assert time_ids[0].tolist() == [16, 16, 0, 0, 16, 16] and len(square) + len(wide) == COUNT
    assert (time_ids[:, 4:] == 16).all()


def test_prompts_alone_are_asked_for_at_the_shapes_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(CAPTIONS[:3]))
    out = tmp_path / "prompts"
    line = ["cache", f"--pipeline={tiny_pipeline('sdxl')}", f"--out={out}"]
    assert dmd2(*line, f"--prompts={tmp_path / 'prompts.txt'}") == 0
    prompts = latents.load(str(out), "all", ((8, 8), (8, 10)))
    for size, pixels in ((8, [16, 16]), ((8, 10), [16, 20])):
        time_ids = prompts.buckets[size].examples(np.arange(3))["time_ids"]
        assert time_ids.tolist() == [[*pixels, 0, 0, *pixels]] * 3


def test_cache_holds_the_empty_prompt_for_sd15() -> None:
    import torch

    with torch.no_grad():
        _, negative = pipeline("sd15").encode_prompt(
            "x", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True
        )
    null = source(made("sd15", *EXACT)).null
    np.testing.assert_allclose(null["prompt_embeds"], negative.numpy(), atol=1e-5)


def test_cache_makes_the_conditions_of_the_family() -> None:
    family = stable_diffusion.read(tiny_pipeline("sd15"))[0]
    opened = source(made("sd15", *EXACT))
    batch = opened.examples(np.arange(2))
    cond = stable_diffusion.with_negative(family.cond(labels_of(batch)), opened.null)
    null = family.denoiser.null_cond(cond)
    expected = np.repeat(opened.null["prompt_embeds"], 2, axis=0)
    np.testing.assert_array_equal(null["prompt_embeds"], expected)
    assert batch["latent"].shape[1:] == family.image_shape


def test_cache_of_prompts_has_no_latents(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\n".join(CAPTIONS[:COUNT]))
    prompts = f"--prompts={tmp_path / 'p.txt'}"
    assert dmd2(*words("sdxl", tmp_path / "c", prompts, "--store=float32")) == 0
    batch, expected = everything(tmp_path / "c"), everything(made("sdxl", *EXACT))
    assert sorted(batch) == ["pooled", "prompt_embeds", "time_ids"]
    for name in batch:
        np.testing.assert_allclose(batch[name], expected[name], atol=1e-5)


def test_cache_goes_through_the_stream_as_every_source() -> None:
    opened = source(made("sdxl", *EXACT), "train")
    assert (len(opened), opened.resolution, opened.channels) == (9, 8, 4)
    batch = batches_from(opened, 0, 3, batch_size=3, seed=1)
    assert batch["latent"].shape == (3, 3, 8, 8, 4)
    assert batch["prompt_embeds"].shape == (3, 3, 77, 40)


def test_cache_says_how_to_use_it_and_data_describes_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "c"
    assert dmd2(*words("sd15", out, f"--images={photos()}")) == 0
    said = capsys.readouterr().out
    assert "10 images with captions in 3 shards" in said
    flags = re.findall(r"--config\S+", said)
    assert dmd2("data", f"--config={RECIPE}", *flags, "--out=unused.png") == 0
    said = capsys.readouterr().out
    assert "10 examples in 3 shards" in said and "latent: float16 [8, 8, 4]" in said
    assert not Path("unused.png").exists()


def test_the_same_cache_again_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    out = made("sd15", *EXACT)
    before = contents(out)
    assert dmd2(*words("sd15", out, f"--images={photos()}", *EXACT)) == 0
    assert contents(out) == before
    assert "10 images with captions in 3 shards" in capsys.readouterr().out


def test_dry_run_prints_sizes_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dmd2(*words("sdxl", tmp_path / "c", f"--images={photos()}", "--dry_run")) == 0
    said = capsys.readouterr().out
    assert "text encoder 2" in said and "autoencoder" in said
    # float16: 8 * 8 * 4 and 77 * 40 numbers
    assert re.search(r"latent +float16 +\[8, 8, 4\] +512", said)
    assert re.search(r"prompt_embeds +float16 +\[77, 40\] +6,160", said)
    assert "10 examples at 16 pixels, 3 shards of 4" in said
    assert list(tmp_path.iterdir()) == []


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    assert dmd2("cache", "--help") == 0
    said = capsys.readouterr().out
    assert "examples:\n  dmd2 cache --pipeline=" in said
    assert "the same command again goes on" in said


# --- going on ---


def unfinished(tmp_path: Path, kept: int) -> Path:
    """A copy of a finished cache as a kill after `kept` shards would have left it."""
    whole, out = made("sd15", *EXACT), tmp_path / "c"
    manifest = read_manifest(whole)
    out.mkdir()
    (out / PLAN).write_text(json.dumps(sealed({}, {"format": 1, "plan": dict(manifest.plan)})))
    for entry in manifest.shards[:kept]:
        shutil.copy(whole / entry.file, out)
        (out / entry.file).with_suffix(".json").write_text(json.dumps(entry._asdict()))
    return out


def test_cache_goes_on_after_the_finished_shards(tmp_path: Path) -> None:
    out = unfinished(tmp_path, kept=2)
    first = out / "shard-00000-of-00003.array_record"
    stamp = first.stat().st_mtime_ns
    # Of a process that cannot be: their numbers are smaller.
    writer = f"{socket.gethostname()}.99999999.0"
    (out / f".shard-00002-of-00003.{writer}.partial.array_record").write_bytes(b"half")
    assert dmd2(*words("sd15", out, f"--images={photos()}", *EXACT)) == 0
    assert first.stat().st_mtime_ns == stamp
    assert contents(out) == contents(made("sd15", *EXACT))


def test_cache_writes_a_damaged_shard_again(tmp_path: Path) -> None:
    out = unfinished(tmp_path, kept=2)
    damage(out / "shard-00001-of-00003.array_record")
    assert dmd2(*words("sd15", out, f"--images={photos()}", *EXACT)) == 0
    assert contents(out) == contents(made("sd15", *EXACT))


def test_cache_goes_on_after_a_kill(tmp_path: Path) -> None:
    prompts = tmp_path / "p.txt"
    prompts.write_text("\n".join(f"{text}, {i}" for i in range(20) for text in CAPTIONS))
    out, peace = tmp_path / "c", tmp_path / "peace"
    line = [
        str(w) for w in words("sd15", out, f"--prompts={prompts}", "--shard_examples=2", EXACT[0])
    ]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(cache_folder())}
    process = subprocess.Popen(
        [sys.executable, "-m", "dmd2_jax.commands.main", *line],
        cwd=RECIPE.parent.parent,
        env=os.environ | cache | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags()},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def written() -> int:
        return len(list(out.glob("shard-*.json")))

    deadline = time.monotonic() + 300
    while written() < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 3 <= written() < 200 and not (out / "manifest.json").exists()
    assert dmd2(*line) == 0
    assert dmd2(*[word.replace(str(out), str(peace)) for word in line]) == 0
    mine, expected = everything(out), everything(peace)
    for name in expected:
        np.testing.assert_allclose(mine[name], expected[name], atol=1e-5)
    assert source(out).captions(range(400)) == source(peace).captions(range(400))


def test_cache_of_other_things_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    out = made("sd15", *EXACT)
    before = contents(out)
    said = refused(capsys, *words("sd15", out, f"--images={photos()}", "--store=float16"))
    assert "latents 'mean', now 'sample', store 'float32', now 'float16'" in said
    assert contents(out) == before


def test_cache_of_changed_captions_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(photos(), tmp_path / "photos"))
    table = other / "metadata.jsonl"
    table.write_text(table.read_text().replace(CAPTIONS[2], "something else"))
    said = refused(capsys, *words("sd15", made("sd15", *EXACT), f"--images={other}", *EXACT))
    assert "holds what was made of other things: inputs" in said


def test_cache_writes_into_no_other_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    said = refused(capsys, *words("sd15", tmp_path, f"--images={photos()}"))
    assert "is not empty, expected a new folder" in said


# --- what is damaged ---


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(made("sd15", *EXACT), tmp_path / "copy"))


@pytest.mark.parametrize("name", ["shard-00001-of-00003.array_record", "null.safetensors"])
def test_load_refuses_a_flipped_bit(name: str, copy: Path) -> None:
    damage(copy / name)
    with pytest.raises(ValueError, match=rf"1 of 4 files .*: {name} \(another digest\)"):
        source(copy)


def test_load_refuses_a_missing_shard(copy: Path) -> None:
    (copy / "shard-00001-of-00003.array_record").unlink()
    with pytest.raises(ValueError, match=r"shard-00001-of-00003.array_record \(No such file"):
        source(copy)


def test_load_refuses_a_changed_manifest(copy: Path) -> None:
    file = copy / "manifest.json"
    file.write_text(file.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(ValueError, match="does not match its own digest"):
        source(copy)


def test_load_refuses_an_unfinished_cache(tmp_path: Path) -> None:
    out = unfinished(tmp_path, kept=1)
    with pytest.raises(FileNotFoundError, match="let `dmd2 cache` finish it"):
        source(out)


# --- what is refused ---


def test_cache_names_the_image_that_cannot_be_decoded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = Path(shutil.copytree(photos(), tmp_path / "photos"))
    (bad / "5.png").write_bytes(b"no image")
    said = refused(capsys, *words("sd15", tmp_path / "c", f"--images={bad}"))
    reason = r"no image of a kind that is read \(PNG, .*cannot identify image file\. More than"
    assert re.search(rf"photos/5\.png: {reason} --max_left_out=0", said)


def test_cache_goes_on_without_an_image_where_it_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = Path(shutil.copytree(photos(), tmp_path / "photos"))
    (bad / "5.png").write_bytes(b"no image")
    Image.fromarray(picture(0, side=8)).save(bad / "9.png")  # too small
    line = words("sd15", tmp_path / "c", f"--images={bad}", *EXACT)
    refused(capsys, *line)  # and the finished first shard stays
    assert dmd2(*line, "--max_left_out=2") == 0
    assert "8 images with captions (2 left out) in 3 shards" in capsys.readouterr().out
    expected = np.delete(everything(made("sd15", *EXACT))["latent"], [5, 9], axis=0)
    np.testing.assert_allclose(everything(tmp_path / "c")["latent"], expected, atol=1e-5)


def test_cache_detects_an_autoencoder_that_overflows_float16(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vae = Path(shutil.copytree(tiny_pipeline("sdxl") / "vae", tmp_path / "vae"))
    file = vae / "diffusion_pytorch_model.safetensors"
    tensors = dict(read_safetensors(file))
    tensors["encoder.conv_in.weight"] = tensors["encoder.conv_in.weight"] * 1e6
    write_safetensors(tensors, file)
    line = words("sdxl", tmp_path / "c", f"--images={photos()}", f"--vae={vae}", "--latents=mean")
    said = refused(capsys, *line, "--vae_dtype=float16")
    assert re.search(r"latents of .*0\.png are not finite when computed in float16", said)
    assert "--vae_dtype=float32" in said
    assert dmd2(*line) == 0  # the remedy


def test_cache_refuses_a_pipeline_with_a_missing_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(tiny_pipeline("sdxl"), tmp_path / "sdxl"))
    shutil.rmtree(folder / "vae")
    line = ["cache", f"--pipeline={folder}", f"--images={photos()}", f"--out={tmp_path / 'c'}"]
    assert "has no part vae/" in refused(capsys, *line)


def test_cache_refuses_long_prompts_by_their_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "seven " * 90
    (tmp_path / "p.txt").write_text(f"a fox\n\n{long}\n" + f"{long}seven\n" * 3)
    line = words("sd15", tmp_path / "c", f"--prompts={tmp_path / 'p.txt'}")
    said = refused(capsys, *line)
    assert "4 of 5 prompts lose their ends: " in said and "line 6" not in said
    assert re.findall(r"p\.txt line (\d) has (\d+)", said) == [
        ("3", "92"),
        ("4", "93"),
        ("5", "93"),
    ]
    assert "expected at most 77: 'seven seven" in said and "--cut_prompts" in said
    assert refused(capsys, *line, "--dry_run") == said and not (tmp_path / "c").exists()


def test_cache_cuts_long_prompts_where_it_is_told_and_warns_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "p.txt").write_text("seven " * 90 + "\na fox\n" + "eight " * 90)
    line = words("sd15", tmp_path / "c", f"--prompts={tmp_path / 'p.txt'}", "--cut_prompts")
    assert dmd2(*line, "--dry_run") == 0
    found = [r.getMessage() for r in caplog.records if "tokens" in r.getMessage()]
    assert len(found) == 1 and found[0].startswith("2 of 3 prompts have more than 77 tokens")


@pytest.mark.parametrize(
    "more, message",
    [
        ((), "expected one of them: images with captions, or prompts alone"),
        (("--images=a", "--prompts=b"), "expected one of them"),
        (("--images=absent",), "absent does not exist, expected a folder or zip of images"),
        (("--prompts=absent.txt",), "absent.txt does not exist"),
        (("--prompts=p", "--batch_size=0"), "--batch_size=0, expected 1 or more"),
        (("--prompts=p", "--seed=-1"), "--seed=-1, expected 0 or more"),
    ],
)
def test_cache_refuses(
    more: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, *words("sd15", tmp_path / "c"), *more)


def test_cache_is_not_begun_with_a_damaged_first_image(tmp_path: Path) -> None:
    broken = write_folder(tmp_path / "broken", {"0.png": b"x", "0.txt": b"x"})
    assert dmd2(*words("sd15", tmp_path / "c", f"--images={broken}")) == 2
    assert not (tmp_path / "c").exists()


def test_cache_refuses_a_resolution_that_does_not_divide(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = words("sd15", tmp_path / "c", f"--images={photos()}", "--resolution=15")
    assert "resolution=15, expected a multiple of 2" in refused(capsys, *line)
