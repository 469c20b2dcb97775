# %% [markdown]
# # 2 · Noise, log-SNR and schedules
#
# What you will see: what a diffusion model is asked to do, at each level of noise.
#
# 1. Pictures drowned in noise, and the one number that says how far: the *log-SNR*.
# 2. What a network makes of them: at much noise it guesses from the caption, at little it copies what it sees.
# 3. Schedules: how often training visits each level, and why larger pictures want more noise.
#
# A toy network trains here for half a minute.

# %%
import matplotlib.pyplot as plt
import torch
from omegaconf import OmegaConf

from imagen import build
from imagen.cli import CONF, compose
from imagen.data.pixels import downsample, to_float, to_uint8
from imagen.randomness import generator_of, normal_from
from imagen.runs import read_weights
from imagen.schedule import alpha_sigma, diffuse
from imagen.training import train
from imagen.types import Conditioning


def show(panel, picture, title=""):
    """A picture in [-1, 1], clipped as a screen would."""
    panel.imshow(to_uint8(picture).permute(1, 2, 0))
    panel.set_title(title, fontsize=9)
    panel.set(xticks=[], yticks=[])


# %% [markdown]
# ## One number for the noise
#
# A noisy picture is `x_t = alpha x0 + sigma eps`: the picture x0 made fainter, plus normal noise eps. With
# `alpha² + sigma² = 1`, pixels of unit variance keep unit variance all the way. What matters is the ratio of
# signal to noise, and as it runs over many powers of ten, its logarithm: `logsnr = ln(alpha² / sigma²)`. At 0
# picture and noise are equally strong; every 2.3 is a factor of ten.

# %%
logsnr = torch.linspace(-12, 12, 241)
alpha, sigma = alpha_sigma(logsnr)

figure, panel = plt.subplots(figsize=(7, 2.6), layout="constrained")
panel.plot(logsnr, alpha, label="alpha: how much picture")
panel.plot(logsnr, sigma, label="sigma: how much noise")
panel.set(xlabel="log-SNR (noise on the left, as in all plots here)")
panel.legend()
plt.show()

# %% [markdown]
# One picture at nine levels, always with the same noise:

# %%
data = build.build_data(compose("train", ["experiment=toy", "batch_size=28"]))  # as many as are held out
data.setup("fit")
batch = next(iter(data.val_dataloader()))  # captions that training never sees

LEVELS = torch.tensor([-8.0, -6, -4, -2, 0, 2, 4, 6, 8])
x0 = to_float(batch.image)
noise = normal_from([generator_of("notebook", i) for i in range(len(x0))], (3, 16, 16))

figure, panels = plt.subplots(1, len(LEVELS), figsize=(13, 1.9), layout="constrained")
for panel, level in zip(panels, LEVELS, strict=True):
    show(panel, diffuse(x0[:1], noise[:1], level[None])[0], f"log-SNR {level:+.0f}")
plt.show()

# %% [markdown]
# ## What a network makes of it
#
# Training is nothing but this: draw a picture, a level and noise; ask the network what it sees; square the error.
# 240,000 weights and 260 steps are enough for shapes of 16 pixels. The next two notebooks look into the same network:
# run from one folder, they find it trained.

# %%
RECIPE = [
    "experiment=toy",
    "network.attention_resolutions=[16,8]",  # attention at the full size too
    "text_pooling=none",  # all text comes by attention, word by word
    "batch_size=16",
    "optimizer.lr=4e-3",
    "max_steps=260",
]
run = train(compose("train", [*RECIPE, "output_dir=outputs", "callback=[progress,checkpoint]"]))
denoiser = build.load_stage(read_weights(run.path), "toy").denoiser


@torch.no_grad()
def guess(level, text):
    """What the network takes x0 to be, from every picture of the batch at one level."""
    x_t = diffuse(x0, noise, level.expand(len(x0)))
    return denoiser(x_t, level.expand(len(x0)), Conditioning(text)).x0


# %% [markdown]
# Above what it is given, in the middle its guess with the caption, below its guess without.

# %%
EXAMPLES = [0, 3]
figure, panels = plt.subplots(3 * len(EXAMPLES), len(LEVELS), figsize=(13, 9), layout="constrained")
for i, level in enumerate(LEVELS):
    rows = (
        diffuse(x0, noise, level.expand(len(x0))),
        guess(level, batch.text),
        guess(level, batch.text.null()),
    )
    for j, example in enumerate(EXAMPLES):
        for k, pictures in enumerate(rows):
            show(panels[3 * j + k, i], pictures[example], f"log-SNR {level:+.0f}" if k == 0 else "")
for j, example in enumerate(EXAMPLES):
    for k, name in enumerate(("given", "with caption", "without")):
        panels[3 * j + k, 0].set_ylabel(name, fontsize=9)
    panels[3 * j, 4].set_title(f"{batch.caption[example]}\nlog-SNR +0", fontsize=9)
plt.show()

# %% [markdown]
# On the left there is nothing to see, so the best guess is the *mean* of all pictures that fit: without a caption of
# the whole set, which is grey; with one, of the two that this text encoder cannot tell apart, a shape and its
# negative ([notebook 1](1_shards_and_captions.ipynb)). On the right the network has hardly anything to do. In between
# the picture is decided: colours first, then shapes, then edges. Sampling walks from left to right, and every step
# uses such a guess.
#
# The error at every level, with and without the caption. The gap between the two is what the text is worth there.

# %%
curve_levels = torch.linspace(-9, 9, 37)
errors = {
    name: [(guess(level, text) - x0).square().mean().item() for level in curve_levels]
    for name, text in {"with caption": batch.text, "without": batch.text.null()}.items()
}

figure, panel = plt.subplots(figsize=(7, 3), layout="constrained")
for name, values in errors.items():
    panel.semilogy(curve_levels, values, label=name)
panel.set(xlabel="log-SNR", ylabel="squared error of x0", title="28 held-out pictures")
panel.legend()
plt.show()

# %% [markdown]
# ## Schedules: how often each level is trained
#
# Training draws a time t from 0 to 1, all alike, and a *schedule* turns it into a log-SNR. Where the curve is
# flat, many times fall on few levels: these are trained often. So a schedule is a density over log-SNR, and it is
# all that is left of it: the network is told the log-SNR, never the time.

# %%
SCHEDULES = ["cosine", "linear", "sigmoid", "edm_lognormal", "logit_normal"]


def schedule(name, resolution=64):
    """An option of conf/schedule, for pictures of so many pixels a side."""
    node = OmegaConf.load(CONF / "schedule" / f"{name}.yaml")
    return build.instantiate(OmegaConf.create({"resolution": resolution, "schedule": node}).schedule)


def density(some_schedule, levels):
    """How often each level is drawn: the slope of the time at which the schedule has it."""
    return -torch.gradient(some_schedule.t(levels), spacing=(levels,))[0]


t = torch.linspace(0, 1, 401, dtype=torch.float64)
wide = torch.linspace(-14, 14, 561, dtype=torch.float64)
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 3.6), layout="constrained")
for name in SCHEDULES:
    left.plot(t, schedule(name).logsnr(t), label=name)
    right.plot(wide, density(schedule(name), wide), label=name)
left.set(xlabel="time t (0 clean, 1 noise)", ylabel="log-SNR", ylim=(-14, 14), title="the curve")
right.set(xlabel="log-SNR", title="how often a level is trained")
right.legend()
plt.show()

# %% [markdown]
# Imagen trains its 64 px and 256 px stages by `cosine` and its 1024 px stage by `linear`, which spends more of
# its time in noise (appendix F). Compare with the error curve above: levels right of 6 teach next to nothing.

# %% [markdown]
# ## The larger a picture, the more noise it needs
#
# The same noise level hides less of a larger picture: neighbouring pixels say the same thing, and an eye, or a
# convolution, averages over them. Averaging 4 × 4 pixels divides the noise's variance by 16, so the log-SNR rises
# by ln 16 = 2.8. Below, one drawing at log-SNR −3, at 16, 64 and 256 pixels, and each made small again to 16.

# %%
from_set = build.build_data(compose("train", ["experiment=toy", "resolution=256"]))
from_set.setup("fit")
large = to_float(next(iter(from_set.val_dataloader())).image[:1])

figure, panels = plt.subplots(2, 3, figsize=(7.5, 5.2), layout="constrained")
for i, side in enumerate((16, 64, 256)):
    clean = downsample(large, 256 // side) if side < 256 else large
    noisy = diffuse(clean, normal_from([generator_of("size", side)], (3, side, side)), torch.tensor([-3.0]))
    show(panels[0, i], noisy[0], f"{side} px, log-SNR −3")
    show(panels[1, i], downsample(noisy, side // 16)[0] if side > 16 else noisy[0], "the same, averaged to 16 px")
plt.show()

# %% [markdown]
# A schedule that is right at 64 pixels is thus too easy at 256. `shifted_cosine` moves the curve by the logarithm
# of the ratio, so that a picture averaged to 64 px meets the plain cosine:

# %%
figure, panel = plt.subplots(figsize=(7, 3), layout="constrained")
for side in (64, 256, 1024):
    panel.plot(wide, density(schedule("shifted_cosine", side), wide), label=f"shifted_cosine at {side} px")
panel.set(xlabel="log-SNR", title="how often a level is trained")
panel.legend()
plt.show()

# %% [markdown]
# ## To try next
#
# - Train with `schedule=linear` or `schedule=edm_lognormal` in the list of overrides, and draw the error curve
#   again: where does it get better, and where worse?
# - `parameterization=epsilon` asks for the noise in place of the picture. At which end does that make the task
#   easy?
# - [objectives.ipynb](objectives.ipynb) adds the third choice, how much each level *counts*.
# - Next: [3, what the U-Net sees](3_what_the_unet_sees.ipynb).
