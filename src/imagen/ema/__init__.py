"""Averaged copies of the network's parameters: what validation, sampling and export use."""

from imagen.ema.average import EMA, ExponentialEMA, NoEMA
from imagen.ema.posthoc import export, reconstruct
from imagen.ema.power import PowerEMA, gamma_of

__all__ = ["EMA", "ExponentialEMA", "NoEMA", "PowerEMA", "export", "gamma_of", "reconstruct"]
