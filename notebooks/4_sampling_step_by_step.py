# %% [markdown]
# # 4 · Sampling, step by step
#
# What you will see: how a picture comes out of noise, and the three knobs of the paper that decide what it looks
# like.
#
# 1. The walk: at every step the noisy picture, and what the network takes the clean one to be.
# 2. *Guidance*: how hard the text pulls, and what too much of it does.
# 3. *Thresholding*: how Imagen keeps strong guidance from breaking the picture.
# 4. The *augmentation level* of a super-resolution stage: how far it trusts what it enlarges.
#
# Two toy stages train here, 16 px and 16 to 32 px, for some 40 seconds.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt
import torch

from imagen import build
from imagen.cli import compose
from imagen.data.pixels import downsample, to_float, to_uint8
from imagen.guidance import ClassifierFreeGuidance
from imagen.randomness import generator_of, normal_from
from imagen.runs import read_weights
from imagen.sampler import DDIM, DDPM
from imagen.stage import Drawn
from imagen.threshold import DynamicThreshold, NoThreshold, StaticThreshold, Threshold, quantile
from imagen.training import train

RECIPE = [
    "experiment=toy",
    "network.attention_resolutions=[16,8]",  # attention at the full size too
    "text_pooling=none",  # all text comes by attention, word by word
    "batch_size=16",
    "optimizer.lr=4e-3",
    "max_steps=260",
]
OURS = ["output_dir=outputs", "callback=[progress,checkpoint]"]
base_cfg = compose("train", [*RECIPE, *OURS])
SR_RECIPE = ["parameterization=v", "network.input_skip=true", "batch_size=16", "optimizer.lr=4e-3", "max_steps=100"]
sr_cfg = compose("train", ["experiment=toy_sr32", *SR_RECIPE, *OURS])
base, sr = (build.load_stage(read_weights(train(cfg).path), cfg.name) for cfg in (base_cfg, sr_cfg))
encoder = build.build_encoder(base_cfg)

# %% [markdown]
# ## The walk
#
# A sampler starts from pure noise and visits a *grid* of noise levels. At each it asks the network for the clean
# picture x0, and moves to the next level with it. `on_step` is called after every step with the new noisy picture
# and that prediction: nothing else is needed to look on.

# %%
PROMPTS = [
    "a red circle on a blue background",
    "a green cross on a white background",
    "a yellow triangle on a purple background",
    "an orange square on a black background",
    "a white circle on a red background",
    "a purple square on a yellow background",
]


def walk(stage, prompts=PROMPTS, seed=1):
    """The pictures that a stage draws, and of every step the noisy picture and the predicted one."""
    steps = []
    generators = [generator_of(seed, prompt) for prompt in prompts]  # each picture has noise of its own
    cond = stage.condition(encoder.encode(prompts), None, generators)
    drawn = stage.draw(
        cond,
        (stage.resolution, stage.resolution),
        generators,
        on_step=lambda i, x, prediction: steps.append((x, prediction.x0)),
    )
    return drawn.pictures, steps


def show(panel, picture, title=""):
    panel.imshow(to_uint8(picture).permute(1, 2, 0))  # clipped to [-1, 1], as a screen would
    panel.set_title(title, fontsize=9)
    panel.set(xticks=[], yticks=[])


patient = replace(base, sampler=DDIM(num_steps=12, eta=0.0))
_, steps = walk(patient)
grid = patient.grid()[1:]  # the levels after each step

for example in (0, 3):
    figure, panels = plt.subplots(2, len(steps), figsize=(14, 2.9), layout="constrained")
    for column, (x, x0), level in zip(panels.T, steps, grid.tolist(), strict=True):
        show(column[0], x[example], "clean" if level == float("inf") else f"log-SNR {level:+.0f}")
        show(column[1], x0[example])
    panels[0, 0].set_ylabel("x_t")
    panels[1, 0].set_ylabel("predicted x0")
    figure.suptitle(PROMPTS[example], fontsize=10)
plt.show()

# %% [markdown]
# Below, the first prediction is what the caption says by itself, a mean of all such pictures, blurred; then the
# shape is settled, then its edges. Above it looks like noise for more than half the way.
#
# If colour and ground are exchanged, that is the text encoder's doing: `hash` gives each word the same vector
# wherever it stands, so *red circle on blue* and *blue circle on red* are one text to this network ([notebook
# 1](1_shards_and_captions.ipynb)). It then takes one of the two, by the noise it starts from.
#
# ## How many steps
#
# The same noise, more and fewer steps. DDIM adds no noise on the way, so that more steps refine the same picture;
# DDPM adds new noise at every step, and needs more of them.

# %%
COUNTS = (1, 2, 4, 8, 16, 32)
figure, panels = plt.subplots(2, len(COUNTS), figsize=(12, 4.4), layout="constrained")
for row, name, sampler in zip(panels, ("DDIM", "DDPM"), (DDIM, DDPM), strict=True):
    for panel, count in zip(row, COUNTS, strict=True):
        own = {"eta": 0.0} if sampler is DDIM else {"gamma": 0.0}
        pictures, _ = walk(replace(base, sampler=sampler(num_steps=count, **own)), PROMPTS[1:2])
        show(panel, pictures[0], f"{name}, {count} steps")
plt.show()

# %% [markdown]
# ## Guidance
#
# Every step asks twice, with the caption and without, and goes further along the difference: `x0 = without +
# weight (with - without)`. At 0 the caption is ignored, at 1 there is no guidance.

# %%
WEIGHTS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)


def guided(weight, threshold):
    return replace(base, guidance=ClassifierFreeGuidance(weight=weight), threshold=threshold)


def sheet(stages, names, **settings):
    _, panels = plt.subplots(len(stages), len(PROMPTS), figsize=(9, 1.55 * len(stages)), layout="constrained")
    for row, stage, name in zip(panels, stages, names, strict=True):
        for panel, picture in zip(row, walk(stage, **settings)[0], strict=True):
            show(panel, picture)
        row[0].set_ylabel(name, fontsize=9)
    for panel, prompt in zip(panels[0], PROMPTS, strict=True):
        panel.set_title(prompt.replace(" on ", "\non "), fontsize=7)


sheet([guided(weight, NoThreshold()) for weight in WEIGHTS], [f"weight {weight:g}" for weight in WEIGHTS])
plt.show()

# %% [markdown]
# Up to 4 the pictures follow the words ever more clearly; beyond, colours burn out and shapes dissolve. The
# paper's explanation (section 2.3): pictures live in [-1, 1], and so did everything that the network saw in
# training. A large weight pushes the prediction out of that range, the next step is given what no training has
# shown, and errors build up.
#
# ## Thresholding
#
# *Static*: clip the prediction to [-1, 1] at every step. *Dynamic*: find s, within which 99.5 % of all pixels'
# sizes lie; if it is above 1, clip to [-s, s] and divide by s. So saturated pixels are pulled inwards, not pinned
# to the border.
#
# How far out does the prediction go? We note s before the threshold acts.

# %%
KINDS = {"none": NoThreshold(), "static": StaticThreshold(), "dynamic": DynamicThreshold(percentile=0.995, cap=None)}


class Noted(Threshold):
    """A threshold that also keeps the size of what it is given."""

    def __init__(self, inner):
        self.inner, self.sizes = inner, []

    def __call__(self, denoise):
        def noting(x_t, logsnr, cond):
            prediction = denoise(x_t, logsnr, cond)
            self.sizes.append(quantile(prediction.x0.abs().flatten(1), 0.995).mean().item())
            return prediction

        return self.inner(noting)


figure, panels = plt.subplots(1, 3, figsize=(12, 3), layout="constrained", sharey=True)
for panel, (name, kind) in zip(panels, KINDS.items(), strict=True):
    for weight in (1.0, 4.0, 16.0):
        noted = Noted(kind)
        walk(replace(guided(weight, noted), sampler=DDIM(num_steps=16, eta=0.0)))
        panel.semilogy(noted.sizes, label=f"weight {weight:g}")
    panel.axhline(1, color="grey", linewidth=0.8)
    panel.set(title=f"threshold: {name}", xlabel="step")
panels[0].set_ylabel("s: 99.5 % of |x0| is below")
panels[0].legend()
plt.show()

# %% [markdown]
# Without a threshold the excess comes back step after step; with one it is cut each time, and later predictions
# stay near the range by themselves. And the pictures, at weight 8:

# %%
sheet([guided(8.0, kind) for kind in KINDS.values()], list(KINDS))
plt.show()

# %% [markdown]
# ## The augmentation level
#
# A super-resolution stage is given the stage before's picture, faults and all. Trained on perfect ones, it would
# take every fault for truth. So in training noise of random strength is put on the small picture, and the network
# is told how much (paper, section 2.4 and appendix D.2). At sampling the level is ours to choose: 0 says *it is
# all true*, more says *take only the gist*.
#
# Here the truth is known: real pictures, made small, then speckled to play an imperfect base stage.

# %%
data = build.build_data(sr_cfg)
data.setup("fit")
batch = next(iter(data.val_dataloader()))
truth = to_float(batch.image)
clean = downsample(truth, 2)
SPECKLE = 0.5  # standard deviation; pictures are in [-1, 1]
speckles = normal_from([generator_of("speckles", i) for i in range(len(clean))], (3, 16, 16))
speckled = clean + SPECKLE * speckles


def enlarge(given, level):
    """What the stage is told, and what it draws of it, at one augmentation level."""
    stage = replace(sr, augmentation_level=level, guidance=ClassifierFreeGuidance(weight=1.0))
    generators = [generator_of(1, key) for key in batch.key]
    cond = stage.condition(batch.text, Drawn(given), generators)
    return cond.low_res, stage.draw(cond, (32, 32), generators).pictures


LEVELS = (0.0, 0.1, 0.2, 0.3, 0.4)
given = {"speckled": speckled, "perfect": clean}
enlarged = {(name, level): enlarge(pictures, level) for name, pictures in given.items() for level in LEVELS}

figure, panels = plt.subplots(4, 1 + len(LEVELS), figsize=(10, 7), layout="constrained")
for pair, example in zip((panels[:2], panels[2:]), (0, 2), strict=True):
    show(pair[0, 0], truth[example], "truth")
    show(pair[1, 0], speckled[example], "faulty, 16 px")
    for column, level in zip(pair[:, 1:].T, LEVELS, strict=True):
        told, drawn = enlarged["speckled", level]
        show(column[0], told[example], f"told, level {level:g}")
        show(column[1], drawn[example], "drawn")
plt.show()

# %% [markdown]
# The error to the truth along the level, when what is given is perfect, and when it is not; and the difference of the
# two, which is what the faults cost.

# %%
errors = {
    name: torch.tensor([(enlarged[name, level][1] - truth).square().mean().sqrt() for level in LEVELS])
    for name in given
}
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3), layout="constrained")
for name, values in errors.items():
    left.plot(LEVELS, values, marker="o", label=f"{name} pictures")
left.set(xlabel="augmentation level at sampling", title="root mean squared error", ylim=(0, None))
left.legend()
right.plot(LEVELS, errors["speckled"] - errors["perfect"], marker="o", color="C2")
right.set(xlabel="augmentation level at sampling", title="what the faults cost", ylim=(0, None))
plt.show()

# %% [markdown]
# The higher the level, the less the faults cost, for the stage believes less of what it is given. But the noise hides
# the picture as well, and that costs more and more. Which of the two weighs more depends on how faulty the stage
# before is, and how good this one. The paper draws best without noise at sampling, once training has had it (figure
# A.11a), and so does this toy; `ablation=augmentation_level` asks it of yours.
#
# ## To try next
#
# - `walk(replace(base, spacing=...))`: other grids ([docs/sampling.md](../docs/sampling.md)).
# - Other guidances in `imagen.guidance`: one for a part of the way alone (`interval`), one that needs no
#   threshold (`rescale`).
# - `SPECKLE = 1.0`: does the best level move as you would think?
# - The same for the demo's stages: `build.load_cascade([...])` takes run folders, and its `stages` are what
#   `base` and `sr` are here.
# - Next: [5, compare runs](5_compare_runs.ipynb).
