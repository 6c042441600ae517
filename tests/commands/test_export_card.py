"""README.md of an export: its header by the Hub's own reader; nothing in it is made up."""

import json
import os
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from dmd2_jax.commands.export.card import Card, model_card
from dmd2_jax.commands.export.origin import Origin, read_origin
from dmd2_jax.commands.export.record import Record, read_record
from dmd2_jax.config import defaults
from dmd2_jax.config.refused import Refused
from dmd2_jax.families.published.flow_scheduler import flow_student_scheduler
from dmd2_jax.families.published.pipeline import PipelineIndex
from dmd2_jax.families.published.scheduler import student_scheduler
from dmd2_jax.run.exported import write_exported
from dmd2_jax.sampling.runs import Run

SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
}
FIGURES = {
    "teacher_num_samples": 200,
    "teacher_fid": 11.25,
    "teacher_nfe": 100,
    "student_num_samples": 200,
    "student_fid": 12.5,
    "student_nfe": 4,
    "student_ema_0.9_num_samples": 200,
    "student_ema_0.9_fid": 13.75,
    "real_fid_floor": 1.5,
    "seed": 7,
    "reference": "/home/ada/photos",
    "extractor": "inception",
}


def base(folder: Path, header: str = "") -> PipelineIndex:
    """A pipeline's folder with a README.md of this header."""
    folder.mkdir(parents=True)
    if header:
        (folder / "README.md").write_text(f"---\n{header}\n---\n# Its base\n")
    return PipelineIndex(folder, "StableDiffusionXLPipeline", True)


def card(index: PipelineIndex, *, said: dict[str, str] | None = None, **more: Any) -> Card:
    scheduler = student_scheduler(SCHEDULER, (999, 749, 499, 249), "lcm")
    return Card(index, scheduler, read_origin(index, **(said or {})), **more)


def parsed(text: str) -> dict[str, Any]:
    """Read the header as the Hub's own client does."""
    return pytest.importorskip("huggingface_hub").ModelCard(text).data.to_dict()


def run(folder: Path, *, ema: float | None = None, figures: Any = FIGURES, **changes: Any) -> Run:
    """A run that ended at cycle 300 of 400, measured."""
    config = defaults.get_config("stable_diffusion")
    with config.unlocked():
        config.name, config.seed = "sdxl_four_step", 3
        config.distill.cycles, config.distill.guidance = 400, 8.0
        config.distill.student_times = (999, 749, 499, 249)
        config.update_from_flattened_dict(changes)
    folder.mkdir(parents=True)
    write_exported(folder, 300)
    name = "student" if ema is None else f"student_ema_{ema:g}"
    (folder / f"{name}.safetensors").touch()
    (folder / "metrics.json").write_text(json.dumps(figures))
    return Run(folder, "student", config, None, "student", ema, folder / f"{name}.safetensors")


def test_header_is_what_the_hub_reads(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--ada--xl-base" / "snapshots" / "0123"
    it = card(base(snapshot, "license: openrail++"))
    assert parsed(model_card(it)) == {
        "license": "openrail++",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "base_model": "ada/xl-base",
        "base_model_relation": "finetune",
        "tags": [
            "text-to-image",
            "stable-diffusion-xl",
            "stable-diffusion-xl-diffusers",
            "dmd2_jax",
            "dmd2",
            "distillation",
            "few-step",
        ],
    }


@pytest.mark.parametrize(
    "name, rounded",
    [
        ("StableDiffusion3Pipeline", ""),
        ("FluxPipeline", "0.75 to 0.752"),
        ("Flux2KleinPipeline", "0.75 to 0.752"),
        ("ZImagePipeline", ""),
        ("QwenImagePipeline", "0.75 to 0.7539"),
    ],
)
def test_card_says_how_a_pipeline_in_bfloat16_rounds_times(
    name: str, rounded: str, tmp_path: Path
) -> None:
    index = PipelineIndex(tmp_path, name, False)
    scheduler = flow_student_scheduler({}, (1.0, 0.75), size=8)
    text = model_card(Card(index, scheduler, Origin("b"), pixels=64))
    found = re.findall(r"In bfloat16 the pipeline rounds the times \((.*)\)", text)
    assert found == [rounded] * bool(rounded)
    if rounded:
        # All of them give the network bfloat16(1000 t) / 1000, which FLUX's multiplies by 1000.
        thousand = jnp.asarray(1000, jnp.bfloat16)
        told = jnp.asarray(750, jnp.bfloat16) / thousand
        time = float(told) if name == "QwenImagePipeline" else float(told * thousand) / 1000
        assert f"{time:.4g}" == rounded.split()[-1]


def test_names_of_strangers_are_text_and_nothing_else(tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)> [a](b) `c` *d* | e\n# \x1b[2J"
    shown = r"&lt;img src=x onerror=alert(1)&gt; \[a\](b) \`c\` \*d\* \| e \# \\x1b\[2J"
    record = Record((("recipe", evil),), (evil,), "fid 1", evil)
    it = card(base(tmp_path / "b"), kind="kohya", file=evil, record=record)
    text = model_card(it._replace(origin=Origin(evil)))
    assert text.count(shown) == 6 and "<img" not in text and "\x1b" not in text
    assert f"\n# {shown}: 4 steps\n" in text and f"\n| recipe | {shown} |\n" in text


@pytest.mark.parametrize("kind", ["peft", "kohya"])
def test_header_of_adapters_says_so(kind: str, tmp_path: Path) -> None:
    it = card(base(tmp_path / "b"), said={"base_model": "ada/xl"}, kind=kind, file="x.safetensors")
    header = parsed(model_card(it))
    assert header["base_model_relation"] == "adapter" and header["tags"][-1] == "lora"


def test_nothing_is_made_up_of_a_base_that_says_nothing(tmp_path: Path) -> None:
    text = model_card(card(base(tmp_path / "home" / "my-base")))
    header = parsed(text)
    assert header["license"] == "other"
    assert not {"base_model", "license_name", "license_link", "model-index"} & set(header)
    assert "Base: my-base." in text and "it is not recorded here" in text
    assert "## Measured" not in text and "| seed |" not in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    "header",
    [
        "license: [mit, other]",
        "license: yes",
        "license: 'mit\\ntags: [x]'",
        "license: !!python/object/apply:os.system [exit]",
        "- a list",
        "license: {",
        "[" * 5000,
    ],
)
def test_licence_that_is_no_word_counts_as_none(header: str, tmp_path: Path) -> None:
    assert read_origin(base(tmp_path / "b", header)) == Origin("b")


def test_licence_of_the_base_keeps_its_name_and_an_address_that_leads_there(tmp_path: Path) -> None:
    said = "license: other\nlicense_name: sai-nc-community\nlicense_link: LICENSE.md"
    it = card(base(tmp_path / "models--ada--turbo" / "snapshots" / "0", said))
    link = "https://huggingface.co/ada/turbo/blob/main/LICENSE.md"
    header = parsed(model_card(it))
    assert (header["license_name"], header["license_link"]) == ("sai-nc-community", link)
    assert f"Licence: sai-nc-community ({link}), as that of the base." in model_card(it)
    assert read_origin(base(tmp_path / "here", said)).licence.link == ""


def test_licence_that_is_given_takes_the_place_of_the_bases(tmp_path: Path) -> None:
    index = base(tmp_path / "b", "license: mit")
    assert parsed(model_card(card(index)))["license"] == "mit"
    assert (
        parsed(model_card(card(index, said={"licence": "apache-2.0"})))["license"] == "apache-2.0"
    )


@pytest.mark.parametrize(
    "said, message",
    [
        ({"licence": "my own!"}, "`license=my own!`, expected an identifier that the Hub knows"),
        ({"base_model": "sdxl"}, "`base_model=sdxl`, expected owner/name as on the Hub"),
    ],
)
def test_malformed_words_for_the_header_are_refused(
    said: dict[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(Refused) as caught:
        card(base(tmp_path / "b"), said=said)
    assert message in str(caught.value)


def test_code_opens_it_where_it_was_pushed(tmp_path: Path) -> None:
    index, said = base(tmp_path / "b"), {"base_model": "ada/xl"}
    assert 'from_pretrained("ada/fast")' in model_card(card(index, said=said, place="ada/fast"))
    text = model_card(card(index, said=said, place="ada/fast", kind="peft"))
    assert 'from_pretrained("ada/xl")\npipe.load_lora_weights("ada/fast")' in text
    more = {"place": "ada/fast", "kind": "single_file", "file": "checkpoint.safetensors"}
    file = "https://huggingface.co/ada/fast/blob/main/checkpoint.safetensors"
    assert f'from_single_file("{file}", config="ada/xl")' in model_card(
        card(index, **more, said=said)
    )


def test_call_of_a_qwen_image_teacher_asks_for_its_guidance(tmp_path: Path) -> None:
    index = base(tmp_path / "b")._replace(class_name="QwenImagePipeline")
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    text = model_card(Card(index, scheduler, read_origin(index)))
    assert 'pipe("a red fox", negative_prompt="")' in text


def test_run_tells_how_it_was_trained(tmp_path: Path) -> None:
    record = read_record(run(tmp_path / "run", **{"optim.generator_lr": 5e-7}), tmp_path)
    text = model_card(card(base(tmp_path / "b"), record=record, dtype="float16"))
    for row in (
        "| recipe | sdxl_four_step |",
        "| cycles | 300 of 400, each a generator turn and 5 of the critic |",
        "| weights | the last weights |",
        "| learning rate | generator 5e-07, critic 2e-06 |",
        "| teacher's guidance | 8 |",
        "| GAN | weight 0.003 |",
        "| inputs in training | its own, simulated |",
        "| seed | 3 |",
        "| file | float16 |",
        "| steps at | 999, 749, 499, 249 |",
    ):
        assert f"\n{row}\n" in text


@pytest.mark.parametrize("ema, fid", [(None, "12.500"), (0.9, "13.750")])
def test_figures_are_those_of_the_weights_that_are_exported(
    ema: float | None, fid: str, tmp_path: Path
) -> None:
    record = read_record(run(tmp_path / "run", ema=ema), tmp_path)
    rows = {line.split()[0]: line.split()[1] for line in record.figures.splitlines()[1:3]}
    assert rows == {"teacher": "11.250", "student" if ema is None else "student_ema_0.9": fid}
    assert record.figures.splitlines()[-1].split()[-2:-1] == ["1.500"]
    text = model_card(card(base(tmp_path / "b"), record=record))
    assert "By `dmd2 evaluate`: 200 images, seed 7, against photos, features inception." in text
    assert "/home/ada" not in text


def test_figures_of_other_weights_are_left_out_and_it_is_said(tmp_path: Path) -> None:
    trained_on = run(tmp_path / "run")
    os.utime(trained_on.workdir / "metrics.json", (1, 1))
    record = read_record(trained_on, tmp_path)
    assert record.figures == "" and "is older than student.safetensors" in record.stale
    other = read_record(run(tmp_path / "other", ema=0.5), tmp_path)
    assert other.figures == "" and "has no figures of student_ema_0.5" in other.stale


@pytest.mark.parametrize("figures", [[1], FIGURES | {"student_num_samples": "many"}])
def test_damaged_figures_are_refused(figures: Any, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="expected what `dmd2 evaluate` wrote"):
        read_record(run(tmp_path / "run", figures=figures), tmp_path)


def test_teacher_of_other_weights_is_named(tmp_path: Path) -> None:
    own = {"teacher.weights": str(tmp_path / "b" / "unet"), "teacher.lora": ""}
    assert read_record(run(tmp_path / "one", **own), tmp_path / "b").teachers == ()
    others = {"teacher.weights": "hf://ada/tuned/x.safetensors", "teacher.lora": "/home/x/ink.st"}
    record = read_record(run(tmp_path / "two", **others), tmp_path / "b")
    assert record == record._replace(teachers=("hf://ada/tuned/x.safetensors", "ink.st"))
    text = model_card(card(base(tmp_path / "b"), record=Record(teachers=record.teachers)))
    assert "The teacher's weights are of hf://ada/tuned/x.safetensors, ink.st." in text
