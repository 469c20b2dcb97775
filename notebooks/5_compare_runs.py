# %% [markdown]
# # 5 · Compare runs
#
# What you will see: several runs side by side, from nothing but the folders that they leave.
#
# 1. What differs between them: the configs, compared.
# 2. The curves: training and validation loss, and the loss at each noise level.
# 3. The sheets: the same captions and the same noise, drawn by each.
# 4. The figures: both measured alike, and whether the difference is more than chance.
# 5. The same numbers from Weights & Biases.
#
# Two toy runs of two seeds each train here, in some 40 seconds.

# %%
import csv
import json
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import yaml
from PIL import Image

from imagen.cli import compose
from imagen.evaluation import measure
from imagen.training import train

# %% [markdown]
# ## Four runs to compare
#
# What the network is asked to predict, `v` or the noise `epsilon`, with the error of epsilon as the loss of both. The
# training is otherwise the same, to the bit: pictures, noise and levels of every step are a function of the seed.

# %%
VARIANTS = {"v": ["parameterization=v"], "epsilon": ["parameterization=epsilon"]}
SEEDS = (0, 1)
EVERY = ["trainer.log_every_n_steps=5", "validate_every_n_steps=20", "callback.sample_grid.every_n_steps=50"]
COMMON = [
    "experiment=toy",
    "weighting=uniform",
    "name=compared",
    "output_dir=outputs",
    "max_steps=100",
    "callback.sample_grid.num_prompts=6",
    *EVERY,
]

for overrides in VARIANTS.values():
    for seed in SEEDS:
        train(compose("train", [*COMMON, *overrides, f"seed={seed}"]))

# %% [markdown]
# From here on only the folders are read. A run is `outputs/<name>/<hash of its config>-s<seed>`; `done.json` is
# written last, so whoever sees it sees a whole run.

# %%
runs = sorted(path.parent for path in Path("outputs/compared").glob("*/done.json"))
for path in sorted(runs[0].iterdir()):
    print(path.name)

# %% [markdown]
# ## What differs
#
# `config.yaml` has every key as it was used, defaults too. Flattened, the runs' configs are compared key by key.

# %%
written = {run: yaml.safe_load((run / "config.yaml").read_text()) for run in runs}


def flat(node, prefix=""):
    """{'optimizer': {'lr': 1}} -> {'optimizer.lr': 1}"""
    if not isinstance(node, dict):
        return {prefix: node}
    children = (flat(child, f"{prefix}.{name}".lstrip(".")) for name, child in node.items())
    return {key: value for child in children for key, value in child.items()}


configs = {run: flat(config) for run, config in written.items()}
keys = {key for config in configs.values() for key in config}
differing = sorted(key for key in keys if len({str(config.get(key)) for config in configs.values()}) > 1)
for key in differing:
    print(f"{key:26}", *(str(config.get(key)).rpartition(".")[2] for config in configs.values()), sep="  ")

# %% [markdown]
# ## The curves
#
# `metrics.jsonl` has one number a line. Averaged over seeds; the band reaches from the least to the greatest.

# %%
variant = {run: str(config["parameterization._target_"]).rpartition(".")[2] for run, config in configs.items()}
COLOURS = dict(zip(sorted(set(variant.values())), ("#0072b2", "#d55e00"), strict=True))


def logged(run):
    """{name: {step: value}} of all that a run has logged."""
    found = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        found.setdefault(row["name"], {})[row["step"]] = row["value"]
    return found


metrics = {run: logged(run) for run in runs}
figure, panels = plt.subplots(1, 2, figsize=(12, 3.4), layout="constrained")
for panel, name in zip(panels, ("train/loss", "val/loss"), strict=True):
    for which, colour in COLOURS.items():
        curves = [metrics[run][name] for run in runs if variant[run] == which]
        steps = list(curves[0])
        values = np.array([list(curve.values()) for curve in curves])
        panel.semilogy(steps, values.mean(0), color=colour, label=which)
        panel.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)
    panel.set(xlabel="step", title=name)
panels[0].legend()
plt.show()

# %% [markdown]
# Whatever a network predicts, its loss is the error of *epsilon*, so that the two curves are of one thing. Still,
# one number hides where a run is good: the last validation, by noise level.

# %%
figure, panel = plt.subplots(figsize=(8, 3.2), layout="constrained")
bins = [name for name in metrics[runs[0]] if name.startswith("val/loss_logsnr")]
bins.sort(key=lambda name: float(name.split("_")[-3]))
for shift, (which, colour) in zip((-0.2, 0.2), COLOURS.items(), strict=True):
    last = [[list(metrics[run][name].values())[-1] for run in runs if variant[run] == which] for name in bins]
    panel.bar(np.arange(len(bins)) + shift, [np.mean(values) for values in last], 0.38, color=colour, label=which)
panel.set_xticks(range(len(bins)), [name.rpartition("logsnr_")[2].replace("_", " ") for name in bins], fontsize=9)
panel.set(xlabel="log-SNR", title="val/loss of the last validation")
panel.legend()
plt.show()

# %% [markdown]
# ## The sheets
#
# Every run draws the same held-out captions from the same noise, so that a difference between sheets is one
# between networks.

# %%
figure, panels = plt.subplots(len(COLOURS), 1, figsize=(9, 5.4), layout="constrained")
for panel, which in zip(panels, COLOURS, strict=True):
    run = next(run for run in runs if variant[run] == which)
    panel.imshow(Image.open(sorted((run / "samples").glob("*.png"))[-1]))
    panel.set_title(f"{which}, {run.name}", fontsize=10)
    panel.axis("off")
plt.show()

# %% [markdown]
# ## The figures
#
# Losses of training are at the levels that training drew. `measure` draws pictures and gives figures that compare
# across any settings: `fd_pixel`, how far the set of pictures is from the real ones, and `heldout_loss`, the
# error on fixed pictures, levels and noise. It writes tables and a sheet into its folder, `sheet.html` opens in a
# browser, and what is there is not measured again.

# %%
ASKED = [
    "metric=[fd_pixel,heldout_loss]",
    "base_weights=[1,3]",
    "num_measured=64",
    "num_train_prompts=4",
    "num_heldout_prompts=4",
]
measured = [(run, point) for run in runs for point in measure([run], run / "evaluation", ASKED)]
rows = [
    {
        "variant": variant[run],
        "run": run.name,
        "weight": point["point"]["base.guidance.weight"],
        **point["metrics"],
    }
    for run, point in measured
]

print(f"{'variant':26}{'run':14}{'weight':>7}{'fd_pixel':>10}{'heldout_loss':>14}")
for row in rows:
    print(f"{row['variant']:26}{row['run']:14}{row['weight']:7}{row['fd_pixel']:10.2f}{row['heldout_loss']:14.4f}")
with open("outputs/compared.csv", "w", newline="") as file:
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)

# %%
figure, panel = plt.subplots(figsize=(6, 3.2), layout="constrained")
for which, colour in COLOURS.items():
    for run in [run for run in runs if variant[run] == which]:
        own = [row for row in rows if row["run"] == run.name]
        panel.plot(
            [row["weight"] for row in own], [row["fd_pixel"] for row in own], marker="o", color=colour, label=which
        )
panel.set(xlabel="guidance weight", ylabel="fd_pixel (lower is better)", title="a line a run")
panel.legend()
plt.show()

# %% [markdown]
# ## More than chance?
#
# A held-out loss is a mean over pictures and levels, and these are the same for all runs. So compare place by
# place: how hard a picture is cancels, and the error of the mean difference is far smaller than the difference of
# two means would have.

# %%
losses = {run: np.load(next((run / "evaluation").glob("*/values.npz")))["heldout_loss"] for run in runs}
for seed in SEEDS:
    pair = {variant[run]: losses[run] for run in runs if run.name.endswith(f"-s{seed}")}
    first, second = pair["Epsilon"], pair["V"]
    difference = (first - second)[np.isfinite(first - second)]
    apart = math.sqrt(first.var() / len(first) + second.var() / len(second))
    paired = difference.std() / math.sqrt(len(difference))
    print(f"seed {seed}: Epsilon - V = {difference.mean():+.4f} ± {paired:.4f} in pairs, ± {apart:.4f} if unpaired")

# %% [markdown]
# This says that these two *networks* differ on such pictures. Whether the *settings* do takes more seeds: two
# trainings of one setting differ as well. `python -m imagen.report` does all this for a whole sweep, with the
# intervals over seeds, and a verdict.
#
# ## The same from Weights & Biases
#
# With `logger=wandb` each run sends the same numbers under the same names, and `WANDB_MODE=offline` writes them
# to disk for a later `wandb sync`. What was synced is read back like this; name your project to try it.

# %%
PROJECT = None  # "me/imagen-lab"


def logged_there(run):
    """As ``logged``, of a run in W&B."""
    found = {}
    for row in run.scan_history():
        for name in row.keys() - {"_step", "_runtime", "_timestamp"}:
            if isinstance(row[name], int | float):
                found.setdefault(name, {})[row["_step"] + 1] = row[name]  # W&B counts the step in hand, from 0
    return found


if PROJECT:
    import wandb

    for run in wandb.Api().runs(PROJECT, filters={"group": "compared"}):
        print(run.name, {name: list(values.values())[-1] for name, values in logged_there(run).items()})

# %% [markdown]
# ## To try next
#
# - A third variant, `x0`; and a look at its bars at high log-SNR.
# - Point `runs` at folders of your own: `Path("../outputs").glob("*/*/done.json")`.
# - A sweep of the paper's: `from imagen.report import read_sweep`, then `read_sweep("encoder_size", "demo",
#   seeds=3)` gives such rows of all its points.
# - Next: [6, averages of any length](6_post_hoc_ema.ipynb).
