"""Samplers: from noise to pictures along a grid of log-SNRs, reading nothing of a model but its prediction.

Every sampler derives epsilon from (x_t, x0) itself, so guidance and thresholding need only change x0. States keep x's
dtype, coefficients are float64 numbers. A grid may start below pure noise and stop above clean, or end at infinity.
"""

from imagen.sampler.ancestral import DDPM, LearnedVarianceDDPM
from imagen.sampler.base import Level, OnStep, Predict, Sampler, Steps, epsilon, levels_of, moved, noise_like
from imagen.sampler.ddim import DDIM
from imagen.sampler.dpm_solver import DPMSolverPP2M, SDEDPMSolverPP2M
from imagen.sampler.flow import FlowEuler, FlowHeun
from imagen.sampler.heun import Heun
from imagen.sampler.unipc import UniPC

__all__ = [
    "DDIM",
    "DDPM",
    "DPMSolverPP2M",
    "FlowEuler",
    "FlowHeun",
    "Heun",
    "LearnedVarianceDDPM",
    "Level",
    "OnStep",
    "Predict",
    "SDEDPMSolverPP2M",
    "Sampler",
    "Steps",
    "UniPC",
    "epsilon",
    "levels_of",
    "moved",
    "noise_like",
]
