# %% [markdown]
# # What a loss asks for
#
# What you will see: how often each noise level is trained, how much it counts, and what comes of the two.
#
# An objective is three choices: what the network predicts (`parameterization`), how often a noise level is
# trained (`schedule`) and how much it counts there (`weighting`). All weights are in units of epsilon's squared
# error, so that the first choice changes no objective and only weight times density matters. The formulas are in
# `docs/objectives.md`; here they are drawn from the options of `conf/`, as they stand there.

# %%
import matplotlib.pyplot as plt
import torch
from omegaconf import OmegaConf

from imagen import build
from imagen.cli import CONF


def option(choice, name, **values):
    """An option of conf/ for pictures of 256 pixels, with ``values`` in place of its own."""
    node = OmegaConf.merge(OmegaConf.load(CONF / choice / f"{name}.yaml"), values)
    return build.instantiate(OmegaConf.create({"resolution": 256, "option": node}).option)


logsnr = torch.linspace(-14, 14, 561, dtype=torch.float64)

# %% [markdown]
# ## One weight, three names
#
# What each weighting puts on the squared error of x0, of epsilon and of v, at three log-SNRs: a target's own
# factor turns one into the other.

# %%
levels = torch.tensor([-4.0, 0.0, 4.0])
WEIGHTINGS = ["uniform", "min_snr", "soft_min_snr", "sigmoid", "edm", "flow"]
print(f"{'weight on':16}" + "".join(f"{unit:^30}" for unit in ("x0-MSE", "epsilon-MSE", "v-MSE")))
print(f"{'log-SNR':16}" + 3 * "".join(f"{level:9.0f} " for level in levels.tolist()))
for name in WEIGHTINGS:
    row = [
        option("weighting", name)(levels) * option("parameterization", p).eps_factor(levels)
        for p in ("x0", "epsilon", "v")
    ]
    print(f"{name:16}" + "".join(f"{value:9.3g} " for value in torch.cat(row).tolist()))

# %% [markdown]
# ## Weight, density, and their product
#
# The density is how often a log-SNR is drawn, by the slope of the schedule. The learned weighting, `uncertainty`,
# starts as `edm`.

# %%
SCHEDULES = ["cosine", "shifted_cosine", "interpolated_cosine", "linear", "sigmoid", "edm_lognormal", "logit_normal"]
RECIPES = {
    "Imagen: cosine, uniform": ("cosine", "uniform"),
    "Imagen 1024: linear, uniform": ("linear", "uniform"),
    "cosine, min_snr": ("cosine", "min_snr"),
    "shifted_cosine, sigmoid": ("shifted_cosine", "sigmoid"),
    "EDM: edm_lognormal, edm": ("edm_lognormal", "edm"),
    "flow: logit_normal, flow": ("logit_normal", "flow"),
}


def density(name):
    times = option("schedule", name).t(logsnr)
    return -torch.gradient(times, spacing=(logsnr,))[0]


weights = {name: option("weighting", name)(logsnr) for name in WEIGHTINGS}
densities = {name: density(name) for name in SCHEDULES}
products = {name: densities[schedule] * weights[weighting] for name, (schedule, weighting) in RECIPES.items()}

# %% [markdown]
# At the noisy end epsilon is nearly x_t itself and its error is small whatever the weight. What a level really
# contributes is seen with data for which the least error is known: Gaussian ones of standard deviation 0.5, of
# whose epsilon x_t leaves the variance `alpha^2 s^2 / (alpha^2 s^2 + sigma^2)` unknown. The last panel is the
# product times that, scaled to an area of one.

# %%
unknown = (logsnr + 2 * torch.log(torch.tensor(0.5))).sigmoid()
shares = {name: product * unknown / torch.trapezoid(product * unknown, logsnr) for name, product in products.items()}

PANELS = [  # title, curves, from, to, logarithmic
    ("Weight on epsilon-MSE", weights, 1e-4, 1e4, True),
    ("Density of training, 256 px", densities, 0, 0.3, False),
    ("Weight times density", products, 1e-4, 10, True),
    ("Share of the loss on Gaussian data of deviation 0.5", shares, 0, 0.4, False),
]
figure, panels = plt.subplots(2, 2, figsize=(11.2, 7.2), layout="constrained")
for panel, (title, curves, low, high, logarithmic) in zip(panels.flat, PANELS, strict=True):
    for name, values in curves.items():
        panel.plot(logsnr, values, label=name)
    panel.set(
        title=title, xlabel="log-SNR (noise on the left)", ylim=(low, high), yscale="log" if logarithmic else "linear"
    )
    panel.grid(color="#e4e4e4")
    panel.legend(fontsize=8, loc="upper right")
# figure.savefig(CONF.parent / "docs/assets/objectives.png", dpi=100)
plt.show()

# %% [markdown]
# ## To try next
#
# - `option("weighting", "min_snr", gamma=1.0)`, and other values of your own, as one more curve.
# - Train what you see: `python train.py experiment=toy schedule=shifted_cosine weighting=sigmoid`.
# - [2, noise, log-SNR and schedules](2_noise_and_schedules.ipynb) starts from the beginning.
