"""DPM-Solver++(2M): order 2, of its SDE form too, whose samples have the law that they should."""

import pytest
from samplers import COSINE, MAKE, even, law_error_on, ode_error, order

from imagen.sampler import SDEDPMSolverPP2M
from imagen.spacing import UniformTime


@pytest.mark.parametrize("std", [0.5, 1.5])
def test_order_of_convergence(std: float) -> None:
    assert order(lambda n: ode_error(MAKE["dpmpp_2m"](n), even(-8, 8, n), std), 40) == pytest.approx(2, abs=0.05)


def test_error_on_the_paper_grid() -> None:
    for steps, bound in ((20, 0.02), (320, 0.003)):
        assert ode_error(MAKE["dpmpp_2m"](steps), UniformTime().grid(COSINE, steps), 0.5) < bound


@pytest.mark.parametrize(("std", "end"), [(0.5, 1), (0.5, 8), (1.5, 8)])
def test_the_sde_s_law_is_right_to_order_2(std: float, end: int) -> None:
    def error(num_steps: int) -> float:
        return law_error_on(SDEDPMSolverPP2M(num_steps=num_steps), even(-8, end, num_steps), std)

    assert error(80) < 0.003
    assert order(error, 80) == pytest.approx(2, abs=0.1)


def test_the_sde_s_law_on_the_paper_grid() -> None:
    assert law_error_on(SDEDPMSolverPP2M(num_steps=100), UniformTime().grid(COSINE, 100), 0.5) < 0.01
