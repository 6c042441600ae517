"""A folder in which the names that the docs use lead to tiny things: commands run there as written.

What stands for what is said in the tables of this file; what a command writes is its folder's own.
"""

import functools
import json
import re
import shlex
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from dmd2_jax import families
from dmd2_jax.config.load import apply_overrides, load_config, plain
from dmd2_jax.families.published.configs import SCHEDULER
from dmd2_jax.families.published.folder import write_component
from dmd2_jax.families.published.lora import to_lora_tensors
from dmd2_jax.families.published.model import PublishedModel
from dmd2_jax.families.stable_diffusion.classes import CLASSES
from dmd2_jax.networks.lora import LoraConfig, lora_init
from dmd2_jax.run.folder import open_run
from dmd2_jax.weights.state_dict import write_safetensors
from examples.captioned_digits.pipeline import _MODEL_INDEX, UNET, write_tokenizer
from tests.data.images import picture, png, write_folder
from tests.flow_pipelines import CAPTIONS, flow_pipeline, random_weights
from tests.tiny import RECIPE, dmd2, scratch, student_run, teacher_run

ROOT = Path(__file__).resolve().parents[1]

_TEXT = r"captioned_digits|sdxl_\w+|sd15\w*"

STAND_INS = (
    (rf"--config=(?:configs/)?(?:{_TEXT})(?:\.py)?", "--config=text.py"),
    (r"--config=(?:configs/)?(?:ablations/)?(?!text)\w+(?:\.py)?", f"--config={RECIPE}"),
    (r"--ema=0\.\d+", "--ema=0.9"),
    (r"--checkpoint=\d+", "--checkpoint=2"),
    (r"--num=\d+", "--num=4"),
    (r"--prompt=.*", "--prompt=a red fox"),
    (r"--steps=\d+", "--steps=2"),
    (r"--port=\d+", "--port=0"),
    (r"--resolution=\d+", "--resolution=16"),
    (r"--resolution=1024,832x1216,1216x832", "--resolution=16,16x24,24x16"),
    (r"--shape=832x1216", "--shape=16x24"),
    (
        r"--config\.distill\.student_times=80,\S+",
        "--config.distill.student_times=1,0.5",
    ),  # of a flow
    (r"--config\.distill\.first_trained_step=3", "--config.distill.first_trained_step=0"),
)
"""What stands for a word of a command: (the word, the one in its place)."""

_FULL = ("--config=digits", "--workdir=runs/new", "--config.teacher.weights=runs/teacher")
"""What stands for the `...` of a `dmd2 distill ...`."""

DRY = ("distill", "make-pairs", "serve", "train-teacher")
"""Commands that get --dry_run, but for a finished run that is told to go on."""


_UNET = UNET | {
    "attention_head_dim": [1],
    "block_out_channels": [4],
    "cross_attention_dim": 8,
    "down_block_types": ["CrossAttnDownBlock2D"],
    "norm_num_groups": 2,
    "up_block_types": ["CrossAttnUpBlock2D"],
}
_PARTS: Mapping[str, Mapping[str, Any]] = {
    "unet": _UNET,
    "vae": {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [4, 8],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "latent_channels": 4,
    },
    "text_encoder": {
        "architectures": ["CLIPTextModel"],
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
    },
}


@functools.cache
def pipeline() -> Path:
    """Return the folder of a Stable Diffusion pipeline of random weights."""
    folder = scratch() / "pipeline"
    words = len(write_tokenizer(folder / "tokenizer", CAPTIONS, 32))
    tokens = {"vocab_size": words, "eos_token_id": words - 1, "max_position_embeddings": 32}
    for part, config in _PARTS.items():
        own = tokens if part == "text_encoder" else {}
        model = PublishedModel.from_config(config | own, classes=CLASSES)
        write_component(model, random_weights(model.param_shapes()), folder / part)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    (folder / "model_index.json").write_text(json.dumps(_MODEL_INDEX))
    return folder


@functools.cache
def text_recipe() -> Path:
    """Return the recipe of text to image, on the pipeline of examples/captioned_digits."""
    file = scratch() / "text.py"
    file.write_text(f"""
from dmd2_jax.config.load import load_config


def get_config():
    config = load_config("captioned_digits")
    config.model.pipeline = {str(pipeline())!r}
    config.data.path = {str(thing("caches/photos_xl"))!r}
    config.teacher.sampler_steps = 2
    config.distill.batch_size = 6
    config.distill.critic_turns = 1
    config.distill.gan_generator_weight = config.distill.gan_critic_weight = None
    config.distill.guidance = None
    config.distill.regression_pairs = 4
    config.optim.ema_decays = (0.9,)
    config.mesh.data = 1
    return config
""")
    return file


def _text_run(recipe: Path, pipeline: Path, **overrides: str) -> Path:
    """Return what a distillation leaves, as far as drawing and exporting go: no step is taken."""
    config = load_config(str(recipe))
    apply_overrides(config, {"model.pipeline": str(pipeline), **overrides})
    family, teacher = families.read(pipeline)
    folder = scratch() / "run"
    open_run(folder, "distill", plain(config))
    for name in ("student", "student_ema_0.9"):
        family.save(teacher, folder / f"{name}.safetensors")
        if config.distill.lora_rank:
            lora = LoraConfig(config.distill.lora_rank, 8.0, tuple(config.distill.lora_targets))
            own = lora_init(jax.random.key(0), teacher, lora, family.tensor_name)
            tensors = to_lora_tensors(own, lora, family.tensor_name)
            write_safetensors(tensors, folder / f"{name}_lora.safetensors")
    return folder


_LORA = {"distill.lora_rank": "2", "distill.lora_targets": "to_q,to_v"}


def _flow(kind: str, **overrides: str) -> Path:
    own = {"model.family": kind, "model.resolution": "6", "teacher.objective": "flow"}
    own |= {"distill.denoising_weight": "flow", "distill.student_times": "1.0,0.5"}
    return _text_run(RECIPE, flow_pipeline(kind), **own, **overrides)


def _photographs() -> Path:
    names = ("cat", "dog")
    files = {f"{names[i % 2]}/{i:02d}.png": png(picture(i, side=64)) for i in range(24)}
    return write_folder(scratch() / "photographs", files)


def _captioned_photos() -> Path:
    files = {}
    for i in range(9):
        image = picture(i, side=24)
        height, width = ((16, 16), (16, 24), (24, 16))[i % 3]
        files[f"{i}.png"] = png(image[:height, :width])
        files[f"{i}.txt"] = f"a handwritten {('one', 'two', 'seven')[i % 3]}".encode()
    return write_folder(scratch() / "photos", files)


def _prompts() -> Path:
    file = scratch() / "prompts.txt"
    file.write_text("a handwritten seven\nthe digit four\n")
    return file


def _cache(*words: str) -> Path:
    out = scratch() / "cache"
    assert dmd2("cache", f"--pipeline={pipeline()}", *words, f"--out={out}") == 0
    return out


def _style() -> Path:
    return thing("runs/lora") / "student_lora.safetensors"


def _copy(run: Path) -> Path:
    return Path(shutil.copytree(run, scratch() / "run"))


def _of_docs(page: str, name: str) -> Path:
    """Return the file that a page has its readers write: the block of Python with `name` in it."""
    text = (ROOT / "docs" / page).read_text()
    (source,) = (it for it in re.findall(r"```python\n(.*?)```", text, re.S) if name in it)
    file = scratch() / "own.py"
    file.write_text(source)
    return file


_TEACHER = "runs/teacher runs/digits_teacher runs/digits_sit_teacher runs/my_recipe_teacher"
_TEACHER += " runs/table4/teacher runs/fashion_teacher runs/z/teacher"
_STUDENT = "runs/student runs/digits_student runs/digits_sit_student runs/my_recipe_student"
_STUDENT += " runs/one_step runs/last_step_1 runs/table4/dmd2/seed_1"
_STUDENT += " runs/fashion_student runs/digits_fastgen"

THINGS: Mapping[str, Callable[[], Path]] = {
    "text.py": text_recipe,
    "my_lab/shapes.py": lambda: _of_docs("data.md", "Discs and squares"),
    "my_lab/spread.py": lambda: _of_docs("evaluation.md", "How far the features"),
    "my_lab/brightness.py": lambda: _of_docs("tutorials/own_model.md", "class Brightness"),
    "photographs animals imagenet": _photographs,
    "photos runs/captioned/images runs/z/images": _captioned_photos,
    "prompts.txt": _prompts,
    "sdxl sd15 my_sdxl sdxl_student runs/captioned/pipeline": lambda: pipeline(),
    "Z-Image runs/z/pipeline": lambda: flow_pipeline("z_image"),
    "Qwen-Image": lambda: flow_pipeline("qwen_image"),
    "sd-vae-ft-ema": lambda: pipeline() / "vae",
    "caches/photos_xl cache runs/captioned/cache": lambda: _cache(f"--images={_photos()}"),
    "caches/prompts_xl": lambda: _cache(f"--prompts={thing('prompts.txt')}"),
    _TEACHER: lambda: _copy(teacher_run()),
    _STUDENT: lambda: _copy(student_run()),
    "runs/four_steps": lambda: _copy(student_run()),
    "runs/sdxl runs/xl runs/captioned/student": lambda: _text_run(text_recipe(), pipeline()),
    "runs/captioned/teacher": lambda: pipeline(),
    "runs/lora runs/captioned/lora": lambda: _text_run(text_recipe(), pipeline(), **_LORA),
    "runs/sd35_medium": lambda: _flow("sd3"),
    "runs/flux_dev": lambda: _flow("flux", **_LORA),
    "runs/z/student": lambda: _flow("z_image"),
    "style.safetensors": _style,
    "student.safetensors": lambda: thing("runs/sdxl") / "student.safetensors",
    "edm-imagenet-64x64-cond-adm.pkl": lambda: ROOT / "tests" / "weights" / "edm.pkl",
}
"""Names in the docs, and what makes the one thing that they lead to."""


def _photos() -> Path:
    return thing("photos")


@functools.cache
def _made(names: str) -> Path:
    return THINGS[names]()


def thing(name: str) -> Path:
    """Return what a name leads to, made once; do not change it, unless it is a run."""
    (names,) = (it for it in THINGS if name in it.split())
    return _made(names)


def set_out(folder: Path, line: str) -> list[str]:
    """Put what a command reads into a folder, and return its words, stand-ins in their places.

    Args:
      folder: empty; the command is to be started in it.
      line: as a page has it.
    """
    words = shlex.split(line)[1:]
    if "..." in words:
        words = [words[0], *_FULL, *(it for it in words[1:] if it != "...")]
    words = [_stand_in(word) for word in words]
    written = _written(words)
    for name in (name for names in THINGS for name in names.split()):
        said = name.removesuffix(".py").replace("/", ".") if name.startswith("my_lab") else name
        read = re.compile(rf"(?:^|[=,]){re.escape(said)}/?(?:$|,)")
        if name not in written and any(map(read.search, words)):
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(thing(name))
    goes_on = not any(word.startswith("--config") for word in words) and words[0] != "serve"
    is_dry = words[0] in DRY and not goes_on and "--dry_run" not in words
    return [*words, "--dry_run"] if is_dry else words


def same(line: str) -> tuple[str, ...]:
    """Return what is equal for lines that do the same in tiny, whatever the names of their runs."""
    firsts = {name: names.split()[0] for names in THINGS for name in names.split()}
    words = (word.partition("=") for word in map(_stand_in, shlex.split(line)))
    kept = [(flag, eq, firsts.get(value.rstrip("/"), value)) for flag, eq, value in words]
    left_out = ("--out", "--workdir", "--dry_run") if kept[1][0] in DRY else ("--out",)
    return tuple("".join(it) for it in kept if it[0] not in left_out)


def _stand_in(word: str) -> str:
    for pattern, other in STAND_INS:
        if re.fullmatch(pattern, word):
            return other
    return word


def _written(words: list[str]) -> set[str]:
    """Return the names of what a command writes anew."""
    values = dict(word.partition("=")[::2] for word in words)
    flags = ["--out", "--write", "--write_reference"]
    flags += ["--workdir"] * (words[0] in ("distill", "train-teacher"))
    written = {values[flag].rstrip("/") for flag in flags if flag in values}
    if words[0] == "convert":
        written |= {word for word in words[2:] if not word.startswith("--")}
    return written if "--config" in values else written - {values.get("--workdir")}
