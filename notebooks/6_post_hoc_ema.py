# %% [markdown]
# # 6 · Post-hoc EMA: averages of any length, after training
#
# What you will see: how much an average of the weights does, and how its length is chosen when the run is over.
#
# Validation, sampling and export use an average of the trained weights, and how far back it should reach is not
# known before the run. With `ema=power` and the callback `ema_snapshots` it need not be: two averages are kept
# and saved along the way, and `imagen.ema.reconstruct` makes any other from their files (EDM2,
# [arXiv:2312.02696](https://arxiv.org/abs/2312.02696), section 3). A length is a `sigma_rel`: the standard
# deviation of the steps that an average looks back on, as a share of the training so far.
#
# Here: one toy run, its validation loss against the length of the average. Half a minute on two CPU cores.

# %%
import matplotlib.pyplot as plt
import torch

from imagen import build
from imagen.cli import compose
from imagen.ema import export, gamma_of, reconstruct
from imagen.ema.posthoc import coefficients, snapshots_of
from imagen.randomness import TrainingAddress
from imagen.training import train

# %% [markdown]
# ## One run, 20 snapshots of two lengths
#
# A high, constant learning rate and batches of two leave the weights rattling about their mean, which is what
# averaging cures.

# %%
STEPS, EVERY = 320, 16
cfg = compose(
    "train",
    [
        "experiment=toy",
        "ema=power",
        "callback=[progress,checkpoint,ema_snapshots]",
        f"callback.ema_snapshots.every_n_steps={EVERY}",
        f"max_steps={STEPS}",
        f"validate_every_n_steps={STEPS}",
        "optimizer.lr=1e-2",
        "batch_size=2",
        "output_dir=outputs",
    ],
)
run = train(cfg)
print(*[path.name for path in run.all_snapshots()[-4:]], sep="\n")

# %% [markdown]
# ## What a length means
#
# `sigma_rel` fixes the exponent of the profile `t^gamma` with which step t is weighed in. A short average forgets
# all but the last steps; the longest, of exponent 0, is the plain mean of all.

# %%
LENGTHS = [0.03, 0.04, 0.05, 0.06, 0.08, 0.10, 0.12, 0.14, 0.16, 0.18, 0.20, 0.22]
step = torch.arange(1, STEPS + 1)

figure, panel = plt.subplots(figsize=(7, 3), layout="constrained")
for length in (0.03, 0.05, 0.10, 0.15, 0.22):
    gamma = gamma_of(length)
    panel.plot(step, (gamma + 1) / STEPS * (step / STEPS) ** gamma, label=f"sigma_rel {length:.2f}, gamma {gamma:.1f}")
panel.set(xlabel="training step", title="share of each step in the average")
panel.legend()
plt.show()

# %% [markdown]
# ## An average that nobody kept
#
# An average is a sum of the steps' weights. So if the profile of length 0.12 is nearly a sum of stored profiles,
# the average of that length is the same sum of stored averages. The coefficients follow by least squares, and
# they are of either sign:

# %%
snapshots = snapshots_of(run.path)
kept_gamma = torch.tensor([gamma_of(one.sigma_rel) for one in snapshots], dtype=torch.float64)
kept_step = torch.tensor([one.step for one in snapshots], dtype=torch.float64)
weights, misfit = coefficients(kept_gamma, kept_step, 0.12, STEPS)

figure, panel = plt.subplots(figsize=(7, 3), layout="constrained")
for length in cfg.ema.sigma_rel:
    own = [one.sigma_rel == length for one in snapshots]
    panel.bar(
        kept_step[own] + (0 if length == cfg.ema.sigma_rel[0] else 6), weights[own], 6, label=f"of length {length:.2f}"
    )
panel.set(xlabel="saved after step", title=f"weight of each snapshot in sigma_rel 0.12 (profile off by {misfit:.1%})")
panel.legend()
plt.show()

# %% [markdown]
# ## Validation loss of each length
#
# The same pictures, noise levels and noise for all of them, so that nothing but the average differs. Filled marks
# are the lengths that were kept during the run; the dashed line is the last weights themselves, without any
# average.

# %%
cfg.batch_size = 28  # all that are held out
module, data = build.build_module(cfg), build.build_data(cfg)
data.setup("fit")
batch = next(iter(data.val_dataloader()))


@torch.no_grad()
def validation_loss(state, draws=8):
    module.stage.denoiser.network.load_state_dict(state)
    addresses = [TrainingAddress(0, -1 - draw, 0, len(batch), len(batch)) for draw in range(draws)]
    losses = [module.loss(module.stage.denoiser, batch, address, training=False) for address in addresses]
    return torch.cat([loss.per_example for loss in losses]).mean().item()


def last_weights():
    """The trained network as the last step left it; a checkpoint has it beside its averages."""
    checkpoint = torch.load(run.all_checkpoints()[-1], weights_only=True)
    prefix = "denoiser.network."
    return {
        name.removeprefix(prefix): value for name, value in checkpoint["state_dict"].items() if name.startswith(prefix)
    }


averaged = {length: reconstruct(run.path, length) for length in LENGTHS}
losses = {length: validation_loss(state) for length, state in averaged.items()}
unaveraged = validation_loss(last_weights())
best = min(losses, key=losses.get)

figure, panel = plt.subplots(figsize=(7, 3.2), layout="constrained")
panel.plot(losses.keys(), losses.values(), marker="o", markerfacecolor="white")
kept = {length: losses[length] for length in cfg.ema.sigma_rel}
panel.plot(kept.keys(), kept.values(), "o", color="C0", label="kept during the run")
panel.axhline(unaveraged, color="grey", linestyle="--", label="no average")
panel.set(xlabel="sigma_rel", ylabel="validation loss", title=f"best: {best:.2f}")
panel.legend()
plt.show()

# %% [markdown]
# Too short an average still rattles; too long a one drags weights along from when the network knew less. The
# curve is flat about its best: to be near it is enough.
#
# ## An export of the best
#
# `python -m imagen.ema RUN sigma_rel=0.12` writes the average as a file that `sample.py` takes as a stage; the same
# from Python:

# %%
print(export(run.path, best))

# %% [markdown]
# ## To try next
#
# - `optimizer.lr=1e-3`, or `batch_size=16`: with less noise in the weights, is a long average still worth it?
# - `lr_scheduler=cosine`: a rate that falls to nothing is an average of its own. Where does the best length go?
# - `EVERY = 80`, four snapshots of each length: which lengths are then refused, and why
#   ([docs/ema.md](../docs/ema.md))?
# - `reconstruct(run.path, 0.12, step=160)`: as if the run had been half as long.
# - Next: [7, your own ablation](7_your_own_ablation.ipynb).
