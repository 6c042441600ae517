"""The recorded losses of Stable Diffusion with the networks that made them, and our programs."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dmd2_jax.diffusion.guidance import guided_x0
from dmd2_jax.distill import (
    DistillConfig,
    Noising,
    Players,
    RolloutDraws,
    Samples,
    critic_turn,
    dmd2,
    generator_turn,
    init_state,
)
from dmd2_jax.distill.objectives import noised
from dmd2_jax.distill.turns import student_input
from dmd2_jax.families.published.folder import read_component, read_component_tensors
from dmd2_jax.families.stable_diffusion import family as stable_diffusion
from dmd2_jax.losses.adversarial import discriminator_adversarial_loss, generator_adversarial_loss
from dmd2_jax.losses.denoising import denoising_loss, denoising_weight
from dmd2_jax.losses.distribution_matching import distribution_matching_loss
from dmd2_jax.networks.gan_head import discriminator
from tests.conformance.derive import check_sums, nhwc, recipe, relative, reversed_, rolled
from tests.conformance.players import golden_head, head_from_tensors, head_to_tensors

_NO_CLIPPING = 1e30


def check_gradients(tensors, z, case, tolerance):
    """Hold gradients by official name against the recorded norms and full arrays."""
    names = [str(n) for n in z[f"{case}_grad_names"]]
    norms = [np.linalg.norm(tensors[n].astype(np.float64)) for n in names]
    assert relative(norms, z[f"{case}_grad_norms"]) < tolerance
    assert relative(np.linalg.norm(norms), z[f"{case}_grad_global_norm"]) < tolerance
    for name in names:
        if f"{case}_grad/{name}" in z:
            assert relative(tensors[name], z[f"{case}_grad/{name}"]) < tolerance, name


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
            "scheduler": everything["scheduler"],
            "resolution": z["latents"].shape[-1],
        }
        self.family = stable_diffusion.build(settings)
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
                encoded.append(jax.jit(model.module.apply)(params, tokens))
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

        return jax.jit(run)(self.real, self.fake, self.x_0, self.cond)

    @functools.cached_property
    def denoising(self) -> tuple:
        """(loss, (x_t, x_0 of the critic), gradient by its tensors)."""

        def loss_fn(params, x_0, cond):
            x_t, t = noised(self.schedule, x_0, self.draw("fake"))
            weight = denoising_weight("eps", self.schedule.alpha(t), self.schedule.sigma(t))
            prediction = self.denoiser.x0(params, x_t, t, cond)
            return denoising_loss(prediction, x_0, weight=weight)[0], (x_t, prediction)

        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, aux), slopes = jax.jit(gradient)(self.fake, self.x_0, self.cond)
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
        (loss, aux), slopes = jax.jit(gradient)(self.x_0, self.fake, self.head, self.cond)
        return loss, aux, slopes

    @functools.cached_property
    def discriminator_adversarial(self) -> tuple:
        """(loss, (real logits, fake logits), gradient by the tensors of both)."""
        real_cond = self.condition(
            "guidcls_real_text_embedding",
            "guidcls_real_pooled_text_embedding",
            self.cond.get("negative_prompt_embeds"),
        )
        real = Samples(nhwc(self.z["guidcls_real_image"]), real_cond)
        fake = Samples(self.x_0, self.cond)

        def loss_fn(players, real, fake):
            x_real, t_real = noised(self.schedule, real.x_0, self.draw("guidcls_real"))
            x_fake, t_fake = noised(self.schedule, fake.x_0, self.draw("guidcls_fake"))
            # One pass over both, as in the turn: half the program.
            both = jax.tree.map(
                lambda *parts: jnp.concatenate(parts),
                (x_real, t_real, real.cond),
                (x_fake, t_fake, fake.cond),
            )
            features = self.denoiser.features(players[0], *both)
            logits = jnp.split(self.discriminator.logits(players[1], features), 2)
            return discriminator_adversarial_loss(*logits)[0], logits

        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, logits), slopes = jax.jit(gradient)((self.fake, self.head), real, fake)
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
            objectives=dmd2(
                dm_weight=float(self.weights["dm_loss_weight"]),
                gan_generator_weight=float(self.weights["gen_cls_loss_weight"]),
                gan_critic_weight=float(self.weights["guidance_cls_loss_weight"]),
                guidance=float(args["real_guidance_scale"]),
                dm_range=(float(args["min_step_percent"]), float(args["max_step_percent"])),
                gan_range=(0.0, args["diffusion_gan_max_timestep"] / n),
                diffusion_gan=args["diffusion_gan"],
                denoising_weight="eps",
            ),
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
        state = init_state(
            config, generator=self.generator, critic=self.fake, discriminator=self.head
        )

        def generate(state, teacher, cond):
            draws = {"dm": self.draw("uni_dm"), "gan": self.draw("uni_cls")}
            state, x_0, metrics = generator_turn(
                state, teacher, cond, self.recorded_rollout, draws, players=players, config=config
            )
            return x_0, metrics, state.generator.opt_state[0].mu

        def guide(state, fake, real):
            draws = {
                "denoising": self.draw("uni_fake"),
                "real": self.draw("uni_real_cls"),
                "fake": self.draw("uni_fake_cls"),
            }
            state, metrics = critic_turn(state, fake, real, draws, players=players, config=config)
            return metrics, [p.opt_state[0].mu for p in (state.critic, state.discriminator)]

        # Two programs: one of both takes longer to compile.
        x_0, metrics, slopes = jax.jit(generate)(state, self.real, fake_cond)
        more, guidance_slopes = jax.jit(guide)(state, Samples(x_0, fake_cond), real)
        return (
            x_0,
            metrics | more,
            self.family.to_state_dict(slopes),
            self.guidance_tensors(*guidance_slopes),
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
        program = jax.jit(run).lower(*example).compile()
        return lambda noise, step: program(self.generator, self.cond, noise, jnp.int32(step))
