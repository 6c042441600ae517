"""The recorded losses of Stable Diffusion with the networks that made them, and our programs."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dmd2_jax.diffusion.guidance import guided_x0
from dmd2_jax.distill import (
    CriticDraws,
    DistillConfig,
    GeneratorDraws,
    Noising,
    Players,
    RolloutDraws,
    Samples,
    critic_turn,
    generator_turn,
    init_state,
)
from dmd2_jax.distill.draws import noised
from dmd2_jax.distill.turns import student_input
from dmd2_jax.families import stable_diffusion
from dmd2_jax.families.diffusers_folder import read_component, read_component_tensors
from dmd2_jax.losses.adversarial import discriminator_adversarial_loss, generator_adversarial_loss
from dmd2_jax.losses.denoising import denoising_loss, denoising_weight
from dmd2_jax.losses.distribution_matching import distribution_matching_loss
from dmd2_jax.networks.gan_head import discriminator
from tests.conformance.derive import check_sums, nhwc, recipe, reversed_, rolled
from tests.conformance.players import golden_head, head_from_tensors, head_to_tensors

_NO_CLIPPING = 1e30


def quick(function, *arguments):
    """Run a function compiled without XLA's expensive passes: each program here runs once."""
    options = {"xla_backend_optimization_level": 0}
    return jax.jit(function).lower(*arguments).compile(compiler_options=options)(*arguments)


class World:
    """One of the recorded models; each program is compiled and run when a test first asks."""

    def __init__(self, golden: Path, name: str) -> None:
        self.golden, self.name = golden, name
        folder = golden / "sd_losses"
        everything = json.loads((folder / "config.json").read_text())
        self.config = everything[name]
        self.args, self.weights = self.config["args"], self.config["loss_weights"]
        self.z = z = dict(np.load(folder / f"{name}.npz"))
        unet = golden / self.config["weights"]
        settings = {
            "unet": json.loads((unet / "config.json").read_text()),
            "latent_size": z["latents"].shape[-1],
        }
        self.family = stable_diffusion.build(settings, everything["scheduler"])
        self.denoiser, self.schedule = self.family.denoiser, self.family.denoiser.schedule
        real = read_component_tensors(unet, "diffusion_pytorch_model")
        fake, generator = reversed_(real), rolled(real)
        check_sums(fake, z, "fake_unet")
        check_sums(generator, z, "feedforward")
        self.real, self.fake, self.generator = map(
            self.family.from_state_dict, (real, fake, generator)
        )
        shapes, module = golden_head(self.config, self.family)
        head = self.config["head"]
        head = recipe(shapes, head["recipe_seed"], head["recipe_gain"])
        check_sums(head, z, "cls_pred_branch")
        self.head = head_from_tensors(module, self.family, head)
        self.discriminator = discriminator(module)
        self.x_0 = nhwc(z["latents"])
        self.cond = self.condition("text_embedding", "pooled_text_embedding", "uncond_embedding")

    def condition(self, prompt, pooled, negative) -> dict:
        """Make a condition of recorded arrays, or of the arrays themselves."""
        prompt, pooled, negative = (
            jnp.asarray(self.z[a]) if isinstance(a, str) and a in self.z else a
            for a in (prompt, pooled, negative)
        )
        if self.family.is_sdxl:  # unconditional: zeros, as recorded
            return {
                "prompt_embeds": prompt,
                "pooled": pooled,
                "time_ids": jnp.asarray(self.z["time_ids"]),
            }
        return {"prompt_embeds": prompt, "negative_prompt_embeds": negative}

    def draw(self, prefix: str) -> Noising:
        """Return a recorded noising."""
        return Noising(
            jnp.asarray(self.z[f"{prefix}_timesteps"], jnp.int32), nhwc(self.z[f"{prefix}_noise"])
        )

    def encode(self, ids: str) -> tuple[jax.Array, jax.Array]:
        """Return (prompt_embeds, pooled) of recorded token ids; `ids` ends in "_ids"."""
        folder, encoded = self.golden / "diffusers_models", []
        for encoder, which in (("text_encoder", "one"), ("text_encoder_2", "two")):
            if f"{ids}_{which}" in self.z:
                model, params = read_component(folder / encoder)
                tokens = jnp.asarray(self.z[f"{ids}_{which}"])
                encoded.append(quick(model.module.apply, params, tokens))
        if not self.family.is_sdxl:
            return encoded[0].last_hidden_state, encoded[0].pooled
        prompt = jnp.concatenate([e.hidden_states[-2] for e in encoded], axis=-1)
        return prompt, encoded[1].text_embeds

    @functools.cached_property
    def distribution_matching(self) -> tuple:
        """(x_t, x_0 of the teacher, of the critic, loss, metrics, gradient by the latents)."""

        def run(real, fake, x_0, cond):
            x_t, t = noised(self.schedule, x_0, self.draw("dm"))
            teacher = guided_x0(self.denoiser, self.args["real_guidance_scale"])
            scores = teacher(real, x_t, t, cond), self.denoiser.x0(fake, x_t, t, cond)
            (loss, metrics), gradient = jax.value_and_grad(
                distribution_matching_loss, has_aux=True
            )(x_0, *scores)
            return x_t, *scores, loss, metrics, gradient

        return quick(run, self.real, self.fake, self.x_0, self.cond)

    @functools.cached_property
    def denoising(self) -> tuple:
        """(loss, (x_t, x_0 of the critic), gradient by its tensors)."""

        def loss_fn(params, x_0, cond):
            x_t, t = noised(self.schedule, x_0, self.draw("fake"))
            weight = denoising_weight("eps", self.schedule.alpha(t), self.schedule.sigma(t))
            prediction = self.denoiser.x0(params, x_t, t, cond)
            return denoising_loss(prediction, x_0, weight=weight)[0], (x_t, prediction)

        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, aux), slopes = quick(gradient, self.fake, self.x_0, self.cond)
        return loss, aux, self.family.to_state_dict(slopes)

    @functools.cached_property
    def generator_adversarial(self) -> tuple:
        """(loss, (logits, features), gradient by the latents)."""

        def loss_fn(x_0, critic, head, cond):
            x_t, t = noised(self.schedule, x_0, self.draw("gencls"))
            features = self.denoiser.features(critic, x_t, t, cond)
            logits = self.discriminator.logits(head, features)
            return generator_adversarial_loss(logits)[0], (logits, features[0])

        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, aux), slopes = quick(gradient, self.x_0, self.fake, self.head, self.cond)
        return loss, aux, slopes

    @functools.cached_property
    def discriminator_adversarial(self) -> tuple:
        """(loss, (real logits, fake logits), gradient by the tensors of both)."""
        real_cond = self.condition(
            "guidcls_real_text_embedding",
            "guidcls_real_pooled_text_embedding",
            self.cond.get("negative_prompt_embeds"),
        )
        samples = (Samples(nhwc(self.z["guidcls_real_image"]), real_cond),)
        samples += (Samples(self.x_0, self.cond),)

        def loss_fn(players, samples):
            logits = []
            for (x_0, cond), who in zip(samples, ("real", "fake"), strict=True):
                x_t, t = noised(self.schedule, x_0, self.draw(f"guidcls_{who}"))
                features = self.denoiser.features(players[0], x_t, t, cond)
                logits.append(self.discriminator.logits(players[1], features))
            return discriminator_adversarial_loss(*logits)[0], logits

        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, logits), slopes = quick(gradient, (self.fake, self.head), samples)
        return loss, logits, self.guidance_tensors(*slopes)

    def guidance_tensors(self, critic, head) -> dict[str, np.ndarray]:
        """Name the tensors of critic and head as the official guidance model does."""
        tensors = {f"fake_unet.{k}": v for k, v in self.family.to_state_dict(critic).items()}
        return tensors | {f"cls_pred_branch.{k}": v for k, v in head_to_tensors(head).items()}

    @functools.cached_property
    def student_times(self) -> tuple[float, ...]:
        """The times of the recorded student."""
        if self.args["denoising"]:
            return tuple(map(float, self.z["denoising_step_list"]))
        return (float(self.args["conditioning_timestep"]),)

    @functools.cached_property
    def distill_config(self) -> DistillConfig:
        """The recorded losses; an optimiser whose first moment is the gradient, and no step."""
        args, n = self.args, len(self.schedule.levels)
        return DistillConfig(
            sample_shape=self.family.image_shape,
            batch_size=len(self.x_0),
            student_times=self.student_times,
            backward_simulation=args["backward_simulation"] or not args["denoising"],
            dm_weight=float(self.weights["dm_loss_weight"]),
            gan_generator_weight=float(self.weights["gen_cls_loss_weight"]),
            gan_critic_weight=float(self.weights["guidance_cls_loss_weight"]),
            guidance=float(args["real_guidance_scale"]),
            dm_range=(float(args["min_step_percent"]), float(args["max_step_percent"])),
            gan_range=(0.0, args["diffusion_gan_max_timestep"] / n),
            diffusion_gan=args["diffusion_gan"],
            denoising_weight="eps",
            generator_lr=0.0,
            critic_lr=0.0,
            warmup=0,
            b1=0.0,
            clip_norm=_NO_CLIPPING,
        )

    @functools.cached_property
    def turns(self) -> tuple:
        """(generated images, metrics, gradients by the generator's and the guidance's tensors)."""
        z, config, denoiser = self.z, self.distill_config, self.denoiser
        players = Players(denoiser, denoiser, denoiser, self.discriminator)
        negative = "uni_uncond_embedding"
        fake_cond = self.condition("uni_text_embedding", "uni_pooled_text_embedding", negative)
        real_cond = self.condition(*self.encode("uni_real_text_input_ids"), negative)
        real = Samples(nhwc(z["uni_real_image"]), real_cond)
        generator_draws = GeneratorDraws(dm=self.draw("uni_dm"), gan=self.draw("uni_cls"))
        critic_draws = CriticDraws(
            denoising=self.draw("uni_fake"),
            real=self.draw("uni_real_cls"),
            fake=self.draw("uni_fake_cls"),
        )

        def run(state, teacher, fake_cond, real):
            state, x_0, metrics = generator_turn(
                state,
                teacher,
                fake_cond,
                self.recorded_rollout,
                generator_draws,
                players=players,
                config=config,
                real=real.x_0,
            )
            state, more = critic_turn(
                state,
                Samples(x_0, fake_cond),
                real,
                critic_draws,
                players=players,
                config=config,
            )
            slopes = [p.opt_state[0].mu for p in state[1:4]]
            return x_0, metrics | more, slopes

        state = init_state(
            config, generator=self.generator, critic=self.fake, discriminator=self.head
        )
        x_0, metrics, slopes = quick(run, state, self.real, fake_cond, real)
        generator, critic, head = slopes
        return (
            x_0,
            metrics,
            self.family.to_state_dict(generator),
            self.guidance_tensors(critic, head),
        )

    @property
    def recorded_rollout(self) -> RolloutDraws:
        """What the recorded student batch was made from: entry i is the input noise of step i."""
        z, final = self.z, nhwc(self.z["uni_noise"])
        step = int(z.get("uni_bs_selected_step", 0))
        noise = [jnp.zeros_like(final)] * len(self.student_times)
        if step:
            noise[0] = nhwc(z["uni_bs_initial_noise"])
            noise[1:step] = list(nhwc(z["uni_bs_noises"])[: step - 1])
        noise[step] = final
        return RolloutDraws(jnp.stack(noise), jnp.int32(step))

    @functools.cached_property
    def student(self):
        """(noise [s, b, ...], step) -> (x_t, t, x_0) of the recorded students, compiled once."""

        def run(params, cond, noise, step):
            draws = RolloutDraws(noise, step)
            x_t, t = student_input(self.denoiser, params, draws, cond, None, self.distill_config)
            return x_t, t, self.denoiser.x0(params, x_t, t, cond)

        noise = jnp.zeros((len(self.student_times), *self.x_0.shape))
        example = (self.generator, self.cond, noise, jnp.int32(0))
        options = {"xla_backend_optimization_level": 0}
        program = jax.jit(run).lower(*example).compile(compiler_options=options)
        return lambda noise, step: program(self.generator, self.cond, noise, jnp.int32(step))
