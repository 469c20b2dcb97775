# %% [markdown]
# # 7 · Your own ablation in ten lines
#
# What you will see: a question of your own put to the lab, from config to figure.
#
# An ablation is a list of *variants*, each a few overrides, some *seeds*, and one figure that decides. Everything
# else is held fixed, and is: pictures, noise and levels of every step are a function of the seed, so that runs of
# one seed differ by their variant alone.
#
# The question here: by which way does the text best come in? Pooled into one vector, by attention to its words,
# or both, as the paper has it (figure A.13a)? Six toy runs, in some 45 seconds.

# %%
import math
from itertools import product

import matplotlib.pyplot as plt
import numpy as np

from imagen.cli import CONF, compose
from imagen.evaluation import measure
from imagen.training import train

# %% [markdown]
# ## The ten lines

# %%
ASKED = ["metric=[heldout_loss,fd_pixel]", "num_measured=64", "num_train_prompts=4", "num_heldout_prompts=4"]
VARIANTS = {
    "pooled": ["network.text_resolutions=[]"],
    "attention": ["text_pooling=none"],
    "both": [],
}
rows = []
for variant, seed in product(VARIANTS, (0, 1)):
    own = [*VARIANTS[variant], f"seed={seed}"]
    run = train(compose("train", ["experiment=toy", *own, "max_steps=80", "output_dir=outputs"]))
    (point,) = measure([run.path], run.path / "evaluation", ASKED)
    rows.append({"variant": variant, "seed": seed, "run": run.path, **point["metrics"]})

# %% [markdown]
# That is all of it: a run that is finished is found and not trained again, nor measured again, so that the cell
# may be stopped and run again, or given a third seed.
#
# ## What came of it
#
# `heldout_loss` is the network's error on fixed held-out pictures, levels and noise; `fd_pixel` how far what it
# draws is from the real pictures. Lower is better for both. A dot is a seed, the bar their mean.

# %%
figure, panels = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
for panel, name in zip(panels, ("heldout_loss", "fd_pixel"), strict=True):
    for i, variant in enumerate(VARIANTS):
        values = [row[name] for row in rows if row["variant"] == variant]
        panel.plot([i] * len(values), values, "o", color=f"C{i}", alpha=0.6)
        panel.hlines(np.mean(values), i - 0.25, i + 0.25, color=f"C{i}", linewidth=3)
    panel.set_xticks(range(len(VARIANTS)), VARIANTS)
    panel.set(title=name, xlim=(-0.6, len(VARIANTS) - 0.4))
plt.show()

# %% [markdown]
# ## Is it more than chance?
#
# Compare seed by seed: of one seed all variants have met the same pictures in the same order with the same noise,
# which is then no part of the difference. With n seeds the 95 % interval is the mean ± t times the standard
# error; for two, t is 12.7: two seeds hardly ever decide anything. Three already have 4.3.

# %%
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t of n - 1 degrees of freedom


def contrast(name, first, second):
    """The difference of two variants in one figure, seed by seed, with its interval and what it says."""
    by = {(row["variant"], row["seed"]): row[name] for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    difference = np.array([by[first, seed] - by[second, seed] for seed in seeds])
    reach = T_95[len(seeds)] * difference.std(ddof=1) / math.sqrt(len(seeds))
    decided = "decided" if abs(difference.mean()) > reach else "undecided: the interval holds zero"
    print(f"{name}, {first} - {second}: {difference.mean():+.4f} ± {reach:.4f}, {len(seeds)} seeds: {decided}")


for name in ("heldout_loss", "fd_pixel"):
    for other in ("pooled", "attention"):
        contrast(name, "both", other)

# %% [markdown]
# ## Where the difference lies
#
# The same loss by noise level, as a ratio to *both*. One number may hide two stories: text matters most where there is
# hardly anything to be seen, on the left, and that is what decides a sample; near the clean end the picture itself says
# all. If the two figures above disagree, look here for the reason.

# %%
bins = [name for name in rows[0] if name.startswith("heldout_loss_logsnr")]
figure, panel = plt.subplots(figsize=(8, 3), layout="constrained")
means = {v: np.array([np.mean([row[name] for row in rows if row["variant"] == v]) for name in bins]) for v in VARIANTS}
for i, (variant, values) in enumerate(means.items()):
    panel.plot(values / means["both"], marker="o", color=f"C{i}", label=variant)
panel.set_xticks(range(len(bins)), [name.rpartition("logsnr_")[2].replace("_", " ") for name in bins], fontsize=8)
panel.set(xlabel="log-SNR", ylabel="loss / loss of both")
panel.legend()
plt.show()

# %% [markdown]
# ## The same as a file
#
# What is asked more than once becomes a file in `conf/ablation/`. The paper's version of this question:

# %%
print("".join((CONF / "ablation/text_conditioning.yaml").read_text().partition("\ngpu:")[0]))

# %% [markdown]
# `variants` are the overrides, `axes` what sampling is measured along, `verdict` the difference that decides and
# its expected sign. One command trains all points, goes on where it stopped, and shares the work with any other
# that runs it; a second writes the page with table, figure, sheet and verdict:
#
# ```bash
# python train.py -m ablation=text_conditioning scale=demo seeds=3
# python -m imagen.report ablation=text_conditioning scale=demo seeds=3
# ```
#
# ## To try next
#
# - A third seed: `product(VARIANTS, (0, 1, 2))`. Only the new runs are trained. Does anything become decided?
# - Another question, by other overrides: `null_text=zeroed` and `learned`, `weighting=min_snr`, `ema.decay=0.9`.
# - Copy a file of `conf/ablation/`, name it after your question, and run it at `scale=demo`.
