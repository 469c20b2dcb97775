"""Guidance wraps a denoiser: the same signature, its x0 pulled towards the prompt.

Affine combinations of x0 and of epsilon are the same thing, so guidance speaks of x0 alone. A weight is Imagen's
(section 2.2) in every option: 1 is the plain conditional model. The null half sees the negative prompt where there is
one, else no prompt, and the same low-resolution picture.
"""

from imagen.guidance.apg import AdaptiveProjectedGuidance
from imagen.guidance.autoguidance import AutoGuidance
from imagen.guidance.base import FindDenoiser, Guidance, NoGuidance, denoise_both
from imagen.guidance.cfg_pp import CFGPlusPlus
from imagen.guidance.classifier_free import ClassifierFreeGuidance
from imagen.guidance.rescale import RescaledGuidance
from imagen.guidance.varying import IntervalGuidance, OscillatingGuidance, ScheduledGuidance

__all__ = [
    "AdaptiveProjectedGuidance",
    "AutoGuidance",
    "CFGPlusPlus",
    "ClassifierFreeGuidance",
    "FindDenoiser",
    "Guidance",
    "IntervalGuidance",
    "NoGuidance",
    "OscillatingGuidance",
    "RescaledGuidance",
    "ScheduledGuidance",
    "denoise_both",
]
