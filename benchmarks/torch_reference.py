"""A PyTorch twin of one distillation cycle, to race against (see benchmarks/cycle.py).

Written from the published description of the algorithm and of the ADM network: the same work in
the same order as the official training script (one generator turn, K critic turns, every pass of
its own), float32 on CPU, with what a careful PyTorch user would do: channels-last memory, fused
attention, `no_grad` where no gradient is needed, frozen parameters in the generator's turn.

    twin = build(config, seed=0)
    seconds = [run_cycle(twin) for _ in range(5)]

Needs torch, which the package itself does not; importing this file without it says so.
"""

import copy
import time
from collections.abc import Mapping, Sequence
from typing import Any

try:
    import torch
    from torch import Tensor, nn
    from torch.nn import functional as F
except ImportError as error:
    raise ImportError(
        "benchmarks/torch_reference.py needs PyTorch, which is not installed; "
        "`pip install torch`, or run the "
        "benchmark without the comparison."
    ) from error

CHANNELS_PER_HEAD = 64
NUM_THREADS = 2


class GroupNorm(nn.Module):
    """Group norm with min(32, channels // 4) groups, eps 1e-5."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.groups = min(32, channels // 4)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [b, c, h, w]."""
        return F.group_norm(x, self.groups, self.weight, self.bias, eps=1e-5)


class Block(nn.Module):
    """ADM's residual block: two convolutions modulated by the embedding, then attention."""

    def __init__(
        self, inputs: int, outputs: int, embedding: int, *, resample: str = "", heads: int = 0
    ) -> None:
        super().__init__()
        self.resample, self.heads = resample, heads
        self.norm0 = GroupNorm(inputs)
        self.conv0 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.affine = nn.Linear(embedding, 2 * outputs)
        self.norm1 = GroupNorm(outputs)
        self.conv1 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None
        if heads:
            self.norm2 = GroupNorm(outputs)
            self.qkv = nn.Conv2d(outputs, 3 * outputs, 1)
            self.proj = nn.Conv2d(outputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Apply the block to x [b, c, h, w] under the embedding [b, d]."""
        h = self.conv0(self._resample(F.silu(self.norm0(x))))
        scale, shift = self.affine(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(F.silu(torch.addcmul(shift, self.norm1(h), scale + 1)))
        skip = self._resample(x)
        x = h + (skip if self.skip is None else self.skip(skip))
        return x + self._attention(x) if self.heads else x

    def _resample(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2, mode="nearest")
        return x

    def _attention(self, x: Tensor) -> Tensor:
        b, c, height, width = x.shape
        qkv = self.qkv(self.norm2(x))
        # Channels lie as (head, channel in head, q/k/v).
        qkv = qkv.reshape(b, self.heads, c // self.heads, 3, height * width)
        q, k, v = qkv.transpose(-1, 2).unbind(dim=3)  # each [b, heads, pixels, channels]
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.proj(attended.transpose(-1, -2).reshape(b, c, height, width))


class AdmUNet(nn.Module):
    """The ADM U-Net; module names are those of the published checkpoints."""

    def __init__(
        self,
        *,
        resolution: int,
        image_channels: int,
        num_classes: int,
        model_channels: int,
        channel_mult: Sequence[int],
        num_blocks: int,
        attention_resolutions: Sequence[int],
        channel_mult_emb: int = 4,
    ) -> None:
        super().__init__()
        self.model_channels = model_channels
        embedding = model_channels * channel_mult_emb
        self.map_layer0 = nn.Linear(model_channels, embedding)
        self.map_layer1 = nn.Linear(embedding, embedding)
        self.map_label = nn.Linear(num_classes, embedding, bias=False) if num_classes else None

        def block(
            inputs: int, outputs: int, size: int, *, attend: bool, resample: str = ""
        ) -> Block:
            attend = attend or (size in attention_resolutions and not resample)
            heads = outputs // CHANNELS_PER_HEAD if attend else 0
            return Block(inputs, outputs, embedding, resample=resample, heads=heads)

        self.enc, self.dec, skips = nn.ModuleDict(), nn.ModuleDict(), []
        channels = image_channels
        for level, mult in enumerate(channel_mult):
            size, wide = resolution >> level, model_channels * mult
            if level == 0:
                self.enc[f"{size}x{size}_conv"] = nn.Conv2d(channels, wide, 3, padding=1)
                channels = wide
            else:
                self.enc[f"{size}x{size}_down"] = block(
                    channels, channels, size, attend=False, resample="down"
                )
            skips.append(channels)
            for index in range(num_blocks):
                name = f"{size}x{size}_block{index}"
                self.enc[name] = block(channels, wide, size, attend=False)
                channels = wide
                skips.append(channels)
        for level in reversed(range(len(channel_mult))):
            size, wide = resolution >> level, model_channels * channel_mult[level]
            if level == len(channel_mult) - 1:
                self.dec[f"{size}x{size}_in0"] = block(channels, channels, size, attend=True)
                self.dec[f"{size}x{size}_in1"] = Block(channels, channels, embedding)
            else:
                self.dec[f"{size}x{size}_up"] = block(
                    channels, channels, size, attend=False, resample="up"
                )
            for index in range(num_blocks + 1):
                name = f"{size}x{size}_block{index}"
                self.dec[name] = block(channels + skips.pop(), wide, size, attend=False)
                channels = wide
        self.out_norm = GroupNorm(channels)
        self.out_conv = nn.Conv2d(channels, image_channels, 3, padding=1)

    def forward(
        self, x: Tensor, noise_labels: Tensor, labels: Tensor | None, *, bottleneck: bool = False
    ) -> Tensor:
        """Return the raw output F, or with `bottleneck` the last encoder block's output."""
        embedding = self._embed(noise_labels, labels)
        skips = []
        for layer in self.enc.values():
            x = layer(x) if isinstance(layer, nn.Conv2d) else layer(x, embedding)
            skips.append(x)
        if bottleneck:
            return x
        for name, layer in self.dec.items():
            x = layer(torch.cat([x, skips.pop()], dim=1) if "_block" in name else x, embedding)
        return self.out_conv(F.silu(self.out_norm(x)))

    def _embed(self, noise_labels: Tensor, labels: Tensor | None) -> Tensor:
        half = self.model_channels // 2
        frequencies = (1 / 10000) ** (torch.arange(half, dtype=torch.float32) / half)
        angles = torch.outer(noise_labels, frequencies)
        x = torch.cat([angles.cos(), angles.sin()], dim=1)
        x = self.map_layer1(F.silu(self.map_layer0(x)))
        if self.map_label is not None and labels is not None:
            x = x + self.map_label(labels)
        return F.silu(x)


class Precond(nn.Module):
    """EDM's denoiser D(x, sigma, labels) around the network F."""

    def __init__(self, sigma_data: float, **network: Any) -> None:
        super().__init__()
        self.sigma_data = sigma_data
        self.model = AdmUNet(**network)

    def forward(
        self, x: Tensor, sigma: Tensor, labels: Tensor | None, *, bottleneck: bool = False
    ) -> Tensor:
        """Return x_0 for x [b, c, h, w] at sigma [b], or the bottleneck's features."""
        s = sigma.reshape(-1, 1, 1, 1)
        total = s.square() + self.sigma_data**2
        raw = self.model(x / total.sqrt(), sigma.log() / 4, labels, bottleneck=bottleneck)
        if bottleneck:
            return raw
        return x * (self.sigma_data**2 / total) + raw * (s * self.sigma_data / total.sqrt())


def make_head(channels: int, hidden: int, size: int) -> nn.Sequential:
    """Make the GAN head: stride-2 convolutions to at most 4 pixels a side, one more, a logit.

    Args:
      channels: of the bottleneck.
      hidden: channels of the head.
      size: height and width of the bottleneck.
    """
    groups = next((g for g in range(min(32, hidden // 3), 1, -1) if hidden % g == 0), 1)
    layers: list[nn.Module] = []
    while size > 4:
        layers += [nn.Conv2d(channels, hidden, 4, 2, 1), nn.GroupNorm(groups, hidden), nn.SiLU()]
        channels, size = hidden, size // 2
    layers += [nn.Conv2d(channels, hidden, size, size), nn.GroupNorm(groups, hidden), nn.SiLU()]
    return nn.Sequential(*layers, nn.Conv2d(hidden, 1, 1))


class Twin:
    """The state of a run: networks, optimisers, and the count of iterations (critic turns)."""

    def __init__(self, config: Mapping[str, Any], seed: int) -> None:
        torch.set_num_threads(NUM_THREADS)
        torch.manual_seed(seed)
        model = config["model"]
        self.distill, self.optim = config["distill"], config["optim"]
        self.shape = (model["image_channels"], model["resolution"], model["resolution"])
        self.num_classes, self.sigma_data = model["num_classes"], model["sigma_data"]
        self.teacher = Precond(
            self.sigma_data,
            resolution=model["resolution"],
            image_channels=model["image_channels"],
            num_classes=model["num_classes"],
            model_channels=model["model_channels"],
            channel_mult=tuple(model["channel_mult"]),
            num_blocks=model["num_blocks"],
            attention_resolutions=tuple(model["attention_resolutions"]),
        ).to(memory_format=torch.channels_last)
        self.teacher.requires_grad_(False)
        self.critic = copy.deepcopy(self.teacher).requires_grad_(True)
        self.generator = copy.deepcopy(self.critic)
        bottleneck = model["resolution"] >> (len(model["channel_mult"]) - 1)
        self.head = make_head(
            model["model_channels"] * model["channel_mult"][-1],
            self.distill["gan_head_channels"],
            bottleneck,
        ).to(memory_format=torch.channels_last)
        self.sigmas = karras_sigmas(
            **{k: model[k] for k in ("sigma_min", "sigma_max", "rho", "num_levels")}
        )
        self.guidance = [*self.critic.parameters(), *self.head.parameters()]
        self.generator_optimizer = self._adamw(list(self.generator.parameters()))
        self.guidance_optimizer = self._adamw(self.guidance)
        self.iteration = 0

    def _adamw(self, parameters: list[nn.Parameter]) -> torch.optim.AdamW:
        o = self.optim
        return torch.optim.AdamW(
            parameters,
            lr=0.0,
            betas=(o["b1"], o["b2"]),
            eps=o["eps"],
            weight_decay=o["weight_decay"],
            fused=True,
        )


def karras_sigmas(*, sigma_min: float, sigma_max: float, rho: float, num_levels: int) -> Tensor:
    """Return the ascending grid of noise levels [num_levels]."""
    ramp = torch.linspace(0, 1, num_levels)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return ((high + ramp * (low - high)) ** rho).flip(0)


def draw_iteration(twin: Twin) -> dict[str, Tensor]:
    """Draw the data and all random numbers of one iteration.

    Returns:
      real [b, c, h, w] in [-1, 1], real_labels and labels [b, classes] one-hot, noise
      [b, c, h, w] standard normal, and `*_index` [b], `*_noise` [b, c, h, w] of the passes
      dm, gan (generator's turn), denoising, real_gan, fake_gan (critic's turn).
    """
    b, n = twin.distill["batch_size"], len(twin.sigmas)
    low, high = twin.distill["dm_range"]
    ranges = {"dm": (int(low * n), min(int(high * n) + 1, n))}

    def labels() -> Tensor | None:
        if not twin.num_classes:
            return None
        return F.one_hot(torch.randint(twin.num_classes, (b,)), twin.num_classes).float()

    def image() -> Tensor:
        return torch.randn(b, *twin.shape).to(memory_format=torch.channels_last)

    draws = {"real": image().clamp(-1, 1), "real_labels": labels(), "labels": labels()}
    draws["noise"] = image()
    for name in ("dm", "gan", "denoising", "real_gan", "fake_gan"):
        draws[f"{name}_index"] = torch.randint(*ranges.get(name, (0, n)), (b,))
        draws[f"{name}_noise"] = image()
    return draws


def train_iteration(twin: Twin, draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Run one iteration: every K-th one updates the generator, every one the critic.

    Args:
      twin: the run; changed in place.
      draws: as `draw_iteration` returns them.

    Returns:
      The losses and gradient norms (before clipping), named as the golden vectors do.
    """
    trains_generator = twin.iteration % twin.distill["critic_turns"] == 0
    warmup = twin.optim["warmup"]
    factor = min(1.0, twin.iteration / warmup) if warmup else 1.0
    sigma_max = float(twin.distill["student_times"][0])
    sigma = torch.full((draws["noise"].shape[0],), sigma_max)
    with torch.set_grad_enabled(trains_generator):
        image = twin.generator(draws["noise"] * sigma_max, sigma, draws["labels"])
    metrics = {}
    if trains_generator:
        metrics |= _generator_update(twin, image, draws, factor)
    metrics |= _critic_update(twin, image.detach(), draws, factor)
    twin.iteration += 1
    return metrics


def _noised(twin: Twin, image: Tensor, draws: Mapping[str, Tensor], name: str) -> tuple:
    sigma = twin.sigmas[draws[f"{name}_index"]]
    return image + sigma.reshape(-1, 1, 1, 1) * draws[f"{name}_noise"], sigma


def _logits(twin: Twin, image: Tensor, labels: Tensor | None, draws: Mapping, name: str) -> Tensor:
    return twin.head(twin.critic(*_noised(twin, image, draws, name), labels, bottleneck=True))


def _generator_update(
    twin: Twin, image: Tensor, draws: Mapping[str, Tensor], factor: float
) -> dict[str, Tensor]:
    twin.critic.requires_grad_(False)
    twin.head.requires_grad_(False)
    with torch.no_grad():
        noisy, sigma = _noised(twin, image, draws, "dm")
        x_0_teacher = twin.teacher(noisy, sigma, draws["labels"])
        x_0_critic = twin.critic(noisy, sigma, draws["labels"])
        residual = image - x_0_teacher
        scale = residual.abs().mean(dim=(1, 2, 3), keepdim=True)
        gradient = torch.nan_to_num((x_0_critic - x_0_teacher) / scale)
        target = image - gradient
    loss_dm = 0.5 * F.mse_loss(image, target)
    loss_gan = F.softplus(-_logits(twin, image, draws["labels"], draws, "gan")).mean()
    (loss_dm + twin.distill["gan_generator_weight"] * loss_gan).backward()
    norm = _step(
        twin, twin.generator_optimizer, twin.generator.parameters(), "generator_lr", factor
    )
    twin.critic.requires_grad_(True)
    twin.head.requires_grad_(True)
    return {
        "g_loss_dm": loss_dm.detach(),
        "g_gen_cls_loss": loss_gan.detach(),
        "g_grad_norm": norm,
    }


def _critic_update(
    twin: Twin, image: Tensor, draws: Mapping[str, Tensor], factor: float
) -> dict[str, Tensor]:
    noisy, sigma = _noised(twin, image, draws, "denoising")
    error = (twin.critic(noisy, sigma, draws["labels"]) - image).square()
    weight = sigma.reshape(-1, 1, 1, 1) ** -2 + twin.sigma_data**-2
    loss_fake = (weight * error).mean()
    logits_real = _logits(twin, draws["real"], draws["real_labels"], draws, "real_gan")
    logits_fake = _logits(twin, image, draws["labels"], draws, "fake_gan")
    loss_gan = F.softplus(logits_fake).mean() + F.softplus(-logits_real).mean()
    (loss_fake + twin.distill["gan_critic_weight"] * loss_gan).backward()
    norm = _step(twin, twin.guidance_optimizer, twin.guidance, "critic_lr", factor)
    return {
        "d_loss_fake_mean": loss_fake.detach(),
        "d_guidance_cls_loss": loss_gan.detach(),
        "d_grad_norm": norm,
    }


def _step(
    twin: Twin, optimizer: torch.optim.Optimizer, parameters: Any, lr: str, factor: float
) -> Tensor:
    norm = nn.utils.clip_grad_norm_(parameters, twin.optim["clip_norm"])
    for group in optimizer.param_groups:
        group["lr"] = twin.optim[lr] * factor
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def build(config: Mapping[str, Any], seed: int) -> Twin:
    """Build a run with random weights.

    Args:
      config: the sections model (network "adm"), distill and optim of a recipe, see
        dmd2_jax/config/defaults.py.
      seed: of torch's global generator.

    Returns:
      The twin; `run_cycle` advances it.

    Raises:
      ValueError: if the config asks for what the twin does not have.
    """
    unsupported = {
        "model.network": config["model"]["network"] != "adm",
        "model.dtype": config["model"]["dtype"] != "float32",
        "model.dropout": config["model"]["dropout"] != 0,
        "distill.student_times": len(config["distill"]["student_times"]) != 1,
        "distill.guidance": config["distill"]["guidance"] is not None,
        "distill.regression_weight": config["distill"]["regression_weight"] is not None,
        "distill.dm_weight": config["distill"]["dm_weight"] != 1.0,
        "distill.gan_critic_weight": not config["distill"]["gan_critic_weight"],
        "distill.denoising_weight": config["distill"]["denoising_weight"] != "edm",
    }
    names = [name for name, bad in unsupported.items() if bad]
    if names:
        raise ValueError(
            f"the PyTorch twin got a config with {', '.join(names)} that it does not have; "
            "expected the one-step ADM recipe with distribution matching and GAN in float32; "
            "run the benchmark without the comparison."
        )
    return Twin(config, seed)


def run_denoising_step(twin: Twin) -> float:
    """Take one step of a teacher's training, EDM's loss and AdamW, and return its seconds."""
    start = time.perf_counter()
    draws = draw_iteration(twin)
    noisy, sigma = _noised(twin, draws["real"], draws, "denoising")
    error = (twin.critic(noisy, sigma, draws["real_labels"]) - draws["real"]).square()
    weight = sigma.reshape(-1, 1, 1, 1) ** -2 + twin.sigma_data**-2
    loss = (weight * error).mean()
    loss.backward()
    _step(twin, twin.guidance_optimizer, twin.guidance, "critic_lr", 1.0)
    float(loss.detach())
    return time.perf_counter() - start


def run_cycle(twin: Twin) -> float:
    """Run one cycle (one generator update, K critic updates) and return its seconds.

    The random numbers are drawn inside, as the JAX cycle does.
    """
    start = time.perf_counter()
    for _ in range(twin.distill["critic_turns"]):
        metrics = train_iteration(twin, draw_iteration(twin))
    float(metrics["d_loss_fake_mean"])
    return time.perf_counter() - start
