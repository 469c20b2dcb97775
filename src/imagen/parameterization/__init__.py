"""What the network's output means: the choices of its training target, and of what else it says."""

from imagen.parameterization.base import Parameterization
from imagen.parameterization.learned_variance import EpsilonLearnedVariance
from imagen.parameterization.targets import EDM, X0, Epsilon, Flow, V

__all__ = ["EDM", "X0", "Epsilon", "EpsilonLearnedVariance", "Flow", "Parameterization", "V"]
