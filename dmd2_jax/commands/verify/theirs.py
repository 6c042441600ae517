"""What the same parts compute in diffusers and transformers; torch is imported here alone.

Everything is float32 on the processor. Their own classes read the files: nothing of this package
stands between the folder and their numbers.
"""

import importlib.util
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from dmd2_jax.commands.verify.subject import STEPS, Subject
from dmd2_jax.commands.verify.their_networks import FLUX2, PACKED, called, unfilled, unpacked
from dmd2_jax.config.refused import Refused
from dmd2_jax.config.sizes import sides
from dmd2_jax.config.text import read_json
from dmd2_jax.families.published.flow_scheduler import is_flow
from dmd2_jax.families.published.folder import weights_variant
from dmd2_jax.families.published.pipeline import INDEX, LANGUAGE_MODELS, LanguageModel
from dmd2_jax.families.published.scheduler import recorded_times, student_scheduler
from dmd2_jax.typing import Float, Int, PyTree

__all__ = ["Theirs", "missing_packages"]

_EMPTY = ""
_MULTIPLE = 32  # of tokens, to which prompts of several lengths are filled up
_QWEN_TOKENS = 512  # of a prompt, in a call of Qwen-Image's pipeline
_KINDS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
_SWITCHED_OFF = {
    "StableDiffusionPipeline": {"requires_safety_checker": False},
    "StableDiffusionXLPipeline": {"add_watermarker": False},
}
"""What is no part of a pipeline's numbers."""


def missing_packages() -> list[str]:
    """Return the packages that comparing needs and that are not installed."""
    names = ("torch", "diffusers", "transformers")
    return [name for name in names if importlib.util.find_spec(name) is None]


class Theirs:
    """A subject in diffusers; each part is read when it is asked for, and freed."""

    def __init__(self, subject: Subject) -> None:
        """Import the packages, which takes seconds; read nothing."""
        import diffusers
        import torch
        import transformers

        self._subject = subject
        self._torch, self._diffusers, self._transformers = torch, diffusers, transformers
        self.versions = (
            f"diffusers {diffusers.__version__}, transformers {transformers.__version__}, "
            f"torch {torch.__version__}"
        )
        self._text: Any = None

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Keep their progress bars and hints off the terminal for a while."""
        logs = [lib.utils.logging for lib in (self._diffusers, self._transformers)]
        levels = [log.get_verbosity() for log in logs]
        for log in logs:
            log.set_verbosity_error()
            log.disable_progress_bar()
        try:
            yield
        finally:
            for log, level in zip(logs, levels, strict=True):
                log.set_verbosity(level)
                log.enable_progress_bar()

    def tokens(self, part: str, texts: Sequence[str], length: int) -> dict[str, np.ndarray]:
        """Return the tokens of texts, cut and padded to a length, as its pipeline asks for them."""
        tokenizer = getattr(self._text_parts(), part)
        settings = {"padding": "max_length", "max_length": length, "truncation": True}
        model = self._language_model
        if model is None:
            return {"ids": np.asarray(tokenizer(list(texts), **settings)["input_ids"], np.int32)}
        if self._kind == "QwenImagePipeline":
            said = [self._text_parts().prompt_template_encode.format(text) for text in texts]
        else:
            thinks = "<think>" not in model.after  # which an empty thought leaves out
            chat = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": thinks}
            turns = [[{"role": "user", "content": text}] for text in texts]
            said = [tokenizer.apply_chat_template(one, **chat) for one in turns]
        made = tokenizer(said, **settings)
        ids, mask = (np.asarray(made[k], np.int32) for k in ("input_ids", "attention_mask"))
        return {"ids": np.where(mask > 0, ids, ~ids)}  # as ours has what fills up

    def encode(self, part: str, ids: Int[np.ndarray, "n t"]) -> dict[str, np.ndarray]:
        """Return what one text encoder makes of tokens, by the names of `ours.encode`."""
        torch, encoder = self._torch, getattr(self._text_parts(), part).float()
        if type(encoder).__name__ == "T5EncoderModel":
            with torch.no_grad():
                return {"last state": encoder(torch.tensor(ids)).last_hidden_state.numpy()}
        if model := self._language_model:
            mask = torch.tensor(ids >= 0)
            plain = torch.tensor(np.where(ids >= 0, ids, ~ids), dtype=torch.long)
            with torch.no_grad():
                out = encoder(plain, attention_mask=mask.long(), output_hidden_states=True)
            kept = 1 if model.filled else mask[..., None]
            return {f"state {i}": (out.hidden_states[i] * kept).numpy() for i in model.states}
        with torch.no_grad():
            out = encoder(torch.tensor(ids, dtype=torch.long), output_hidden_states=True)
        arrays = {"last state": out.last_hidden_state, "last but one": out.hidden_states[-2]}
        if "text_embeds" in out:
            arrays["projected"] = out.text_embeds
        else:
            arrays["pooled"] = out.pooler_output
        return {name: array.numpy() for name, array in arrays.items()}

    def condition(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the condition of prompts as their pipeline makes it, by our names."""
        pipe, torch, texts = self._text_parts(), self._torch, list(texts)
        kind = self._kind
        with torch.no_grad():
            if kind == "ZImagePipeline":  # which overwrites the list that it is given
                return _filled(*pipe.encode_prompt(list(texts), device="cpu"))
            if kind == "QwenImagePipeline":
                told: dict[str, Any] = {"device": "cpu", "max_sequence_length": _QWEN_TOKENS}
                halves = (texts, [_EMPTY] * len(texts))
                made = [pipe.encode_prompt(half, **told) for half in halves]
                # No mask: every token is one of a prompt.
                whole = [(x, torch.ones(x.shape[:2]) if m is None else m) for x, m in made]
                return _filled(*(list(unfilled(*one)) for one in whole))
            if kind == "Flux2KleinPipeline":
                both = (texts, [_EMPTY] * len(texts))
                parts = tuple(pipe.encode_prompt(each, device="cpu")[0] for each in both)
            elif kind == "FluxPipeline":
                made = [
                    pipe.encode_prompt(t, None, device="cpu")
                    for t in (texts, [_EMPTY] * len(texts))
                ]
                parts = (made[0][0], made[1][0], made[0][1], made[1][1])
            elif kind == "StableDiffusion3Pipeline":
                parts = pipe.encode_prompt(texts, None, None, device="cpu")
            elif kind == "StableDiffusionXLPipeline":
                parts = pipe.encode_prompt(texts, device="cpu")
            else:
                parts = pipe.encode_prompt(texts, "cpu", 1, True)
        names = ("prompt_embeds", "negative_prompt_embeds", "pooled", "negative_pooled")
        return {n: array.numpy() for n, array in zip(names, parts, strict=False)}

    def _text_parts(self) -> Any:
        """Open their pipeline with text encoders alone; of its network it has the config."""
        if self._text is None:
            subject = self._subject
            with self._torch.device("meta"):
                network = self._class().from_config(self._class().load_config(subject.network))
            kept = [name for pair in subject.pipeline_index.text_parts for name in pair]
            self._text = self._pipeline({subject.pipeline_index.network: network}, kept)
        return self._text

    def close_text(self) -> None:
        """Free the text encoders."""
        self._text = None

    def noise(
        self, shape: tuple[int, int, int], steps: int, count: int
    ) -> Float[np.ndarray, "s b h w c"]:
        """Draw the noises of images that their pipeline draws too, its latents and each step's."""
        rows = [
            [unpacked(self._network, x, shape) for x in self._draw(shape, steps, i)]
            for i in range(count)
        ]
        return np.concatenate([np.stack(row) for row in rows], axis=1)

    def _draw(self, shape: tuple[int, int, int], steps: int, seed: int) -> list[Any]:
        """Draw from the global generator: not every pipeline hands its own to its scheduler."""
        h, w, c = shape
        patch = 1 if self._network == FLUX2 else 2 if self._network in PACKED else 0
        size = (1, h // patch * (w // patch), c * patch**2) if patch else (1, c, h, w)
        self._torch.manual_seed(seed)
        return [self._torch.randn(size) for _ in range(steps)]

    @property
    def _kind(self) -> str:
        """The class of the pipeline."""
        return self._subject.pipeline_index.class_name

    @property
    def _network(self) -> str:
        """The class of the denoiser."""
        return self._subject.family.model.class_name

    @property
    def _language_model(self) -> LanguageModel | None:
        """How a language model reads the prompts; None: no such reads them."""
        return LANGUAGE_MODELS.get(self._kind)

    def network(self) -> Any:
        """Read their network, with the subject's weights where these are others.

        Raises:
          Refused: if diffusers' network does not hold these weights.
        """
        subject, kind = self._subject, self._class()
        if not subject.replaced:
            variant = self._variant(subject.network)
            return kind.from_pretrained(subject.network, variant=variant).float().eval()
        network = kind.from_config(kind.load_config(subject.network))
        arrays = subject.family.to_state_dict(subject.load())
        tensors = {k: self._torch.from_numpy(np.array(v, np.float32)) for k, v in arrays.items()}
        shapes = {k: tuple(v.shape) for k, v in network.state_dict().items()}
        wrong = sorted(k for k, v in tensors.items() if shapes.get(k) != tuple(v.shape))
        lost = sorted(set(shapes) - set(tensors))
        if wrong or lost:
            raise Refused(
                f"diffusers' {kind.__name__} does not hold these weights: {len(wrong)} tensors of "
                f"other names or shapes {wrong[:3]}, {len(lost)} missing {lost[:3]}, expected "
                "those of the pipeline's network; leave `weights` away, or export the run first."
            )
        network.load_state_dict(tensors, assign=True)
        return network.eval()

    def x_0(
        self,
        network: Any,
        x_t: Float[np.ndarray, "1 h w c"],
        times: np.ndarray,
        halves: PyTree,
        tell: Callable[[], None],
    ) -> dict[str, np.ndarray]:
        """Return x_0 at some times for each half of guidance, by the names of `ours.network`."""
        arrays, scale = {}, self._subject.family.input_guidance
        for t in times:
            for name, cond in halves.items():
                with self._torch.no_grad():
                    raw = called(network, x_t, t, cond, scale)
                alpha, sigma, kind = self._levels(t)
                arrays[f"x_0 at t={t:g}, {name}"] = _to_x_0(kind, raw, x_t, alpha, sigma)
                tell()
        return arrays

    def _levels(self, t: Any) -> tuple[float, float, str]:
        """Return alpha, sigma and what is predicted, as their scheduler of the folder has them."""
        family, folder = self._subject.family, self._subject.folder / "scheduler"
        kind = family.diffusion.kind
        if kind == "flow":
            return 1.0 - float(t), float(t), kind
        if not folder.is_dir():  # of a network alone: what this package takes
            schedule, time = family.denoiser.schedule, jnp.asarray([t])
            return float(schedule.alpha(time)[0]), float(schedule.sigma(time)[0]), kind
        config = read_json(folder / "scheduler_config.json")
        scheduler = self._diffusers.DDPMScheduler.from_config(config)
        square = float(scheduler.alphas_cumprod[int(t)])
        return square**0.5, (1 - square) ** 0.5, _KINDS[scheduler.config.prediction_type]

    def images(
        self, network: Any, cond: Any, tell: Callable[[], None]
    ) -> Float[np.ndarray, "n h w 3"]:
        """Sample the images by their pipeline, in [0, 1]: their scheduler and autoencoder.

        Args:
          network: theirs.
          cond: of the images: arrays by our names, or the numbers of their classes.
          tell: is called after every image.
        """
        subject, torch = self._subject, self._torch
        pipe = self._pipeline({subject.pipeline_index.network: network}, ["vae"])
        pipe.set_progress_bar_config(disable=True)
        words, kind = self._sampling(pipe), self._kind
        if kind == "DiTPipeline":  # which draws its latents itself
            made = []
            for i, label in enumerate(cond):
                torch.manual_seed(i)
                made.append(pipe([int(label)], output_type="np", **words).images)
                tell()
            return np.concatenate(made)
        names = {
            "pooled": "pooled_prompt_embeds",
            "negative_pooled": "negative_pooled_prompt_embeds",
        }
        made = []
        for i in range(len(cond["prompt_embeds"])):
            one = {
                names.get(k, k): torch.from_numpy(np.array(v[i : i + 1]))
                for k, v in cond.items()
                if k != "time_ids" and not (kind == "FluxPipeline" and k.startswith("negative_"))
            }
            for name in [name for name in one if name.endswith("prompt_mask")]:
                embeds = name.replace("mask", "embeds")
                if kind == "QwenImagePipeline":
                    one[f"{embeds}_mask"] = one.pop(name).long()
                else:
                    one[embeds] = list(unfilled(one[embeds], one.pop(name)))
            latents = self._draw(subject.family.image_shape, 1, i)[0]
            if self._network == FLUX2:  # which it packs itself
                h, w, c = subject.family.image_shape
                latents = latents.permute(0, 2, 1).reshape(1, c, h, w)
            made.append(pipe(latents=latents, output_type="np", **one, **words).images)
            tell()
        return np.concatenate(made)

    def _sampling(self, pipe: Any) -> dict[str, Any]:
        """Choose the scheduler, its own of a student's export; return what the call is told."""
        subject, libraries = self._subject, self._diffusers
        assert subject.pipeline is not None
        config, times = subject.pipeline.scheduler, subject.times
        own = recorded_times(config) == times
        words: dict[str, Any] = {"guidance_scale": subject.guidance or 0}
        if self._kind == "DiTPipeline":
            pipe.scheduler = self._of_classes(pipe.scheduler.config)
            return words | {"num_inference_steps": len(times or range(STEPS))}
        words |= dict(zip(("height", "width"), sides(subject.pipeline.resolution), strict=True))
        if subject.family.input_guidance is not None:
            words["guidance_scale"] = subject.family.input_guidance
        if self._kind == "ZImagePipeline":  # pos + w (pos - neg), which is ours with 1 more
            words["guidance_scale"] = (subject.guidance or 1) - 1
        if self._kind == "QwenImagePipeline":
            words |= {"guidance_scale": None, "true_cfg_scale": subject.guidance or 1}
        if is_flow(config):
            if times is None:
                sigmas = np.linspace(1.0, 1.0 / STEPS, STEPS).tolist()
                return words | {"sigmas": sigmas, "num_inference_steps": STEPS}
            if not own:
                flow = libraries.FlowMatchEulerDiscreteScheduler
                pipe.scheduler = flow(stochastic_sampling=True)
            return words | {"sigmas": list(times)}
        if times is not None:
            if not own:
                lcm = libraries.LCMScheduler
                pipe.scheduler = lcm.from_config(student_scheduler(config, [int(t) for t in times]))
            return words | {"timesteps": [int(t) for t in times]}
        if subject.guidance is not None:
            settings = {"clip_sample": False}
            pipe.scheduler = libraries.DDIMScheduler.from_config(pipe.scheduler.config, **settings)
        return words | {"num_inference_steps": STEPS}

    def _of_classes(self, config: Mapping[str, Any]) -> Any:
        """Return the scheduler of a pipeline of classes, whose call takes no times."""
        times, libraries = self._subject.times, self._diffusers
        if times is None:
            return libraries.DDIMScheduler.from_config(config, clip_sample=False)
        whole = [int(t) for t in times]
        scheduler = libraries.LCMScheduler.from_config(student_scheduler(config, whole))
        ask = scheduler.set_timesteps
        scheduler.set_timesteps = lambda *_, device=None: ask(timesteps=whole, device=device)
        return scheduler

    def autoencoder(self, picture: Float[np.ndarray, "1 h w 3"]) -> dict[str, np.ndarray]:
        """Return a picture's latent and that latent's image, by the names of `ours`."""
        torch, subject = self._torch, self._subject
        folder = subject.pipeline_index.part("vae")
        kind = getattr(self._diffusers, read_json(folder / "config.json")["_class_name"])
        vae = kind.from_pretrained(folder, variant=self._variant(folder)).float().eval()
        x = torch.from_numpy(picture.transpose(0, 3, 1, 2).copy())
        if frames := "latents_mean" in vae.config and "scaling_factor" not in vae.config:
            x, ends = x[:, :, None], (1, -1, 1, 1, 1)
            shift = torch.tensor(vae.config.latents_mean).view(ends)
            scale = 1 / torch.tensor(vae.config.latents_std).view(ends)
        else:
            shift = vae.config.get("shift_factor") or 0.0
            scale = vae.config.get("scaling_factor")
        with torch.no_grad():
            encoded = vae.encode(x)
            z = encoded.latents if "latents" in encoded else encoded.latent_dist.mode()
            image = vae.decode(z).sample
            if hasattr(vae, "bn"):  # of FLUX.2, whose latents are patches
                z = vae.bn(self._diffusers.Flux2KleinPipeline._patchify_latents(z))
            else:
                z = (z - shift) * scale
        arrays = {"latent": z, "image": image}
        plain = {name: x[:, :, 0] if frames else x for name, x in arrays.items()}
        return {name: x.numpy().transpose(0, 2, 3, 1) for name, x in plain.items()}

    def _class(self) -> Any:
        return getattr(self._diffusers, self._subject.family.model.class_name)

    def _pipeline(self, given: Mapping[str, Any], kept: Collection[str]) -> Any:
        """Open their pipeline with some of its parts alone."""
        index = read_json(self._subject.folder / INDEX)
        parts = {k for k, v in index.items() if isinstance(v, list)} - {*kept, "scheduler"}
        words: dict[str, Any] = dict.fromkeys(sorted(parts)) | dict(given)
        name = self._subject.pipeline_index.class_name
        words |= _SWITCHED_OFF.get(name, {})
        first = next(part for part in kept if "token" not in part)
        variant = self._variant(self._subject.pipeline_index.part(first))
        kind = getattr(self._diffusers, name)
        return kind.from_pretrained(self._subject.folder, variant=variant, **words)

    def _variant(self, folder: Path) -> str | None:
        """Return the variant that we read, which diffusers has to be told."""
        return weights_variant(folder, self._subject.family.variant)


def _filled(*prompts: Sequence[Any]) -> dict[str, np.ndarray]:
    """Return prompts of several lengths, and what guidance goes away from, as our conditions."""
    longest = max(len(prompt) for part in prompts for prompt in part)
    tokens = -(-longest // _MULTIPLE) * _MULTIPLE
    cond = {}
    for start, part in zip(("", "negative_"), prompts, strict=True):
        rows = [np.pad(prompt.numpy(), ((0, tokens - len(prompt)), (0, 0))) for prompt in part]
        counts = np.array([len(prompt) for prompt in part])
        mask = np.arange(tokens) < counts[:, None]
        cond |= {f"{start}prompt_embeds": np.stack(rows)}
        cond |= {f"{start}prompt_mask": mask.astype(np.float32)}
    return cond


def _to_x_0(kind: str, raw: np.ndarray, x_t: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
    """Return x_0 of a prediction, by the definitions of each kind."""
    if kind == "eps":
        return (x_t - sigma * raw) / alpha
    if kind == "v":
        return alpha * x_t - sigma * raw
    return raw if kind == "x0" else x_t - sigma * raw
