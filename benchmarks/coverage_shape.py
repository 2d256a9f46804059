"""Tests the intervals of the law of shapes on planted truths.

    python -m benchmarks.coverage_shape [--draws 60]

The star is the paper's (Alabdulmohsin et al. 2023, https://arxiv.org/abs/2305.13035): width, depth and MLP of
(1968, 40, 6144), one at a time made smaller, each at 500,000, 1 and 2 million steps. Errors follow the law
with the paper's exponents, times noise. Coverage is the share of draws whose 95 % interval holds the planted
exponent: that of the profile likelihood, and the usual one from the curvature at the best fit (Wald). An
exponent is told if the ends of its interval differ by at most a factor of 2.
"""

import argparse
import math
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.stats import shape_law
from orchestrator.stats.shape_law import Runs, ShapeLaw, fit

NAMES = ("width", "depth", "mlp")
CENTRE = np.array([1968.0, 40.0, 6144.0])
SIZES = (
    (608, 768, 928, 1088, 1328, 1648),
    (8, 10, 12, 16, 20, 24),
    (1088, 1360, 1728, 2160, 2592, 3072),
)
STEPS = (5e5, 1e6, 2e6)

#: Planted exponents, those of the paper; and the compute at which the best shape is planted, in GFLOPs.
EXPONENTS = (0.222, 0.449, 0.597)
REFERENCE = 1e13
_C = 0.4
_BEST, _ALPHA = (0.6, 0.5, 0.45), (0.03, 0.03, 0.02)

Array = NDArray[Any]


def star(steps: tuple[float, ...] = STEPS) -> tuple[Array, Array]:
    """Returns the shapes, (N, 3), and the forward GFLOPs of their training, (N,)."""
    shapes = [CENTRE]
    for place, sizes in enumerate(SIZES):
        for size in sizes:
            shape = CENTRE.copy()
            shape[place] = size
            shapes.append(shape)
    # 257 tokens; queries, keys, values and projection, and two layers of the MLP; batches of 128.
    gflops = np.array([2 * d * 257 * (4 * w**2 + 2 * w * m) / 1e9 for w, d, m in shapes])
    return np.repeat(shapes, len(steps), axis=0), np.concatenate([g * 128 * np.array(steps) for g in gflops])


def planted(noise: float, seed: int, steps: tuple[float, ...] = STEPS) -> Runs:
    """Returns runs of the star whose errors follow the law, with relative noise."""
    shapes, compute = star(steps)
    t, x = compute / REFERENCE, shapes / CENTRE
    errors = 0.1 + 0.06 * t**-_C
    for k, exponent in enumerate(EXPONENTS):
        a = b = _C / exponent / 2
        beta = _ALPHA[k] * a / (b * _BEST[k] ** (a + b))
        errors = errors + _ALPHA[k] * x[:, k] ** -a + beta * x[:, k] ** b * t**-_C
    factors = 1 + noise * np.random.default_rng(seed).standard_normal(len(errors))
    return Runs(NAMES, shapes, compute, errors * factors)


def wald_covers(law: ShapeLaw) -> list[bool]:
    """Returns whether the interval from the curvature at the best fit holds each planted exponent."""
    normal = shape_law._normal(law.runs, law.reference)
    columns = []
    for place in range(len(law.parameters)):
        moved = law.parameters.astype(complex)
        moved[place] += 1e-30j
        columns.append(shape_law._residuals(moved, *normal).imag / 1e-30)
    jacobian = np.stack(columns, axis=1)
    variances = law.residual**2 * np.diag(np.linalg.pinv(jacobian.T @ jacobian))
    found = []
    for k, exponent in enumerate(EXPONENTS):
        place = 4 * k + 1
        distance = abs(math.log(exponent) - float(law.parameters[place]))
        found.append(distance <= 1.96 * math.sqrt(max(float(variances[place]), 0.0)))
    return found


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--draws", type=int, default=60)
    parser.add_argument("--starts", type=int, default=10, help="random starts of each fit")
    draws, starts = (arguments := parser.parse_args()).draws, arguments.starts
    print(f"{draws} draws, {starts} starts; shares in % for {', '.join(NAMES)}")
    print(f"{'noise':>6}  {'steps':>14}  {'profile covers':>18}  {'Wald covers':>18}  {'told':>15}  s/draw")
    for noise in (0.002, 0.01):
        for steps in (STEPS, (2.5e5, 1e6, 4e6)):
            began = time.process_time()
            sums = np.zeros((3, 3))
            for seed in range(draws):
                law = fit(planted(noise, seed, steps), REFERENCE, seed, starts)
                assert law is not None
                pairs = list(zip(NAMES, EXPONENTS, strict=True))
                sums[0] += [law.p_value(name, exponent) > 0.05 for name, exponent in pairs]
                sums[1] += wald_covers(law)
                sums[2] += [law.exponent(name).is_told for name in NAMES]
            shares = ["  ".join(f"{100 * share:4.0f}" for share in row / draws) for row in sums]
            times = f"{steps[0]:.2g} to {steps[-1]:.2g}"
            seconds = (time.process_time() - began) / draws
            row = [f"{100 * noise:5.1f}%", f"{times:>14}", f"{shares[0]:>18}", f"{shares[1]:>18}"]
            print("  ".join([*row, f"{shares[2]:>15}", f"{seconds:.1f}"]), flush=True)


if __name__ == "__main__":
    main()
