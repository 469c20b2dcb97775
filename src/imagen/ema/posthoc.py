"""Averages of any length after training, from snapshots of a few (EDM2, arXiv 2312.02696, section 3.2)."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float64
from torch import Tensor

from imagen.ema.power import gamma_of, inner_product
from imagen.errors import UserError
from imagen.runs import RunFolder, Weights, read_header, read_weights

MISFIT_LIMIT = 0.1
"""How much of a profile (of its L2 norm) the best fit may miss; 16 snapshots of 0.05 and 0.10 reach 0.03 to 0.25."""


@dataclass(frozen=True)
class Snapshot:
    """A file of ``RUN/snapshots``, one length's average after one step, and what it says of itself."""

    path: Path
    header: Weights

    @property
    def step(self) -> int:
        return self.header.step

    @property
    def sigma_rel(self) -> float:
        assert self.header.sigma_rel is not None
        return self.header.sigma_rel


def snapshots_of(run: str | Path) -> list[Snapshot]:
    """A run's snapshots, oldest first.

    Raises: UserError if there are none, or naming a damaged one.
    """
    paths = RunFolder(Path(run)).all_snapshots()
    if not paths:
        raise UserError(f"run '{run}' holds no snapshots; train with ema=power and ema_snapshots among the callbacks")
    return [Snapshot(path, read_header(path)) for path in paths]


def coefficients(
    stored_gamma: Float64[Tensor, " s"], stored_step: Float64[Tensor, " s"], sigma_rel: float, step: int
) -> tuple[Float64[Tensor, " s"], float]:
    """The weights of stored averages whose sum is nearest to the wanted one, and how far their profile is off.

    Least squares between profiles, in closed form (EDM2, appendix C), then scaled so that the weights sum to one, as
    those of an average must. The misfit is relative to the wanted profile's L2 norm.
    """
    gram = inner_product(stored_gamma[:, None], stored_step[:, None], stored_gamma[None], stored_step[None])
    wanted = torch.tensor([gamma_of(sigma_rel), step], dtype=torch.float64)
    shared = inner_product(stored_gamma, stored_step, wanted[0], wanted[1])
    norm = gram.diagonal().sqrt()  # late profiles are far flatter than early ones: all are brought to length one
    cosines = gram / norm[:, None] / norm
    weights = torch.linalg.lstsq(cosines, (shared / norm)[:, None], driver="gelsd").solution[:, 0] / norm
    weights = weights / weights.sum()
    own = inner_product(wanted[0], wanted[1], wanted[0], wanted[1])
    missed = own - 2 * shared @ weights + weights @ gram @ weights
    return weights, (missed.clamp(min=0) / own).sqrt().item()


def reconstruct(run: str | Path, sigma_rel: float, step: int | None = None) -> dict[str, Tensor]:
    """The state, in float32, of the average of length ``sigma_rel`` after ``step``, by default the last saved.

    ``step`` is one that snapshots were taken at; those up to it are read one after the other, each once.

    Raises: UserError if there are no snapshots, none at ``step``, or if they do not reach ``sigma_rel``.
    """
    return _reconstructed(run, sigma_rel, step).state


def export(run: str | Path, sigma_rel: float, step: int | None = None) -> Path:
    """Write ``RUN/weights_<sigma_rel>_step_<n>.safetensors``, a stage like any other. Raises: as ``reconstruct``."""
    weights = _reconstructed(run, sigma_rel, step)
    path = Path(run) / f"weights_{sigma_rel:g}_step_{weights.step:09d}.safetensors"
    weights.save(path)
    return path


def _reconstructed(run: str | Path, sigma_rel: float, step: int | None) -> Weights:
    snapshots = snapshots_of(run)
    steps = [snapshot.step for snapshot in snapshots]
    step = steps[-1] if step is None else step
    if step not in steps:
        nearest = min(steps, key=lambda saved: abs(saved - step))
        raise UserError(f"step={step} has no snapshot in run '{run}'; the nearest that has one is step={nearest}")
    snapshots = [snapshot for snapshot in snapshots if snapshot.step <= step]
    state = _weighted_sum(snapshots, _checked_coefficients(snapshots, sigma_rel, step))
    return replace(snapshots[-1].header, state=state, sigma_rel=sigma_rel)


def _checked_coefficients(snapshots: list[Snapshot], sigma_rel: float, step: int) -> list[float]:
    gammas = torch.tensor([gamma_of(snapshot.sigma_rel) for snapshot in snapshots], dtype=torch.float64)
    steps = torch.tensor([snapshot.step for snapshot in snapshots], dtype=torch.float64)
    weights, misfit = coefficients(gammas, steps, sigma_rel, step)
    if misfit > MISFIT_LIMIT:
        lengths = [n / 100 for n in range(1, 29)] + [s.sigma_rel for s in snapshots if s.step == step]
        reached = [length for length in lengths if coefficients(gammas, steps, length, step)[1] <= MISFIT_LIMIT]
        nearest = min(reached, key=lambda length: abs(length - sigma_rel))
        raise UserError(
            f"sigma_rel={sigma_rel} is out of reach of the {len(snapshots)} snapshots up to step {step}: their best "
            f"fit is off by {misfit:.0%} of its profile; the nearest within reach is sigma_rel={nearest}"
        )
    return weights.tolist()


def _weighted_sum(snapshots: list[Snapshot], weights: list[float]) -> dict[str, Tensor]:
    """In float64, since weights of either sign may be large; there a buffer, the same in all, comes back exactly."""
    total: dict[str, Tensor] = {}
    for snapshot, weight in zip(snapshots, weights, strict=True):
        for name, value in read_weights(snapshot.path).state.items():
            if not value.is_floating_point():
                total[name] = value
            elif name in total:
                total[name].add_(value.double(), alpha=weight)
            else:
                total[name] = value.double() * weight
    return {name: value.float() if value.is_floating_point() else value for name, value in total.items()}
