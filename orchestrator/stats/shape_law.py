"""The scaling law of SoViT: error as a function of a network's shape and its compute, fitted to runs.

    error(x, t) = sum_k alpha_k x_k^-a_k + (sum_k beta_k x_k^b_k + xi) t^-c + eps

x_k are dimensions of a shape (width, depth, MLP), t is compute. For a given t, dimension k is best at
(alpha_k a_k t^c / (beta_k b_k))^(1 / (a_k + b_k)). So the best shape grows as t^s_k, where s_k is
c / (a_k + b_k).

Source: Alabdulmohsin et al. 2023, "Getting ViT in Shape", https://arxiv.org/abs/2305.13035, section 3, with
one c for all dimensions, as it argues there.

The law is fitted in the parameters that are asked for: s_k, and the best shape at a reference compute. So
each has a profile-likelihood interval: all values at which the best fit is not significantly worse by an F
test.
Unlike a bootstrap of the best fit, the interval is unbounded where the data do not determine the value.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

Array = NDArray[Any]

#: Random starts of the first fit; most end in a worse minimum or far from one.
NUM_STARTS = 24

#: Random starts of further fits, which also start from the first.
_FURTHER_STARTS = 6

#: An exponent or a best size is told if its interval's ends differ by at most this factor.
MOST_RATIO = 2.0

#: Parameters of each dimension, and of all.
_OWN, _SHARED = 4, 3

#: Farthest from the best fit that an end of an interval is looked for, as a factor.
_FARTHEST = 16.0

#: The first step on that way, and the accuracy of an end, of the logarithm.
_FIRST_STEP, _END_ACCURACY = 0.02, 2e-3


@dataclass(frozen=True, slots=True)
class Profile:
    """A value with its 95 % interval. An end is None where no value up to 16 times farther is refuted."""

    value: float
    low: float | None
    high: float | None

    @property
    def is_told(self) -> bool:
        """Returns whether the data determine the value, to within a factor of `MOST_RATIO`."""
        return self.low is not None and self.high is not None and self.high <= MOST_RATIO * self.low


@dataclass(frozen=True, eq=False)
class Runs:
    """Finished runs of one family of shapes.

    Attributes:
      dimensions: names of the K dimensions.
      shapes: (N, K), all above 0.
      compute: (N,), in any unit, all above 0.
      errors: (N,), all above 0.
    """

    dimensions: tuple[str, ...]
    shapes: Array
    compute: Array
    errors: Array

    @property
    def num_parameters(self) -> int:
        """The parameters of the law for these dimensions."""
        return _OWN * len(self.dimensions) + _SHARED

    def __getitem__(self, rows: Any) -> "Runs":
        return Runs(self.dimensions, self.shapes[rows], self.compute[rows], self.errors[rows])


@dataclass(frozen=True, eq=False)
class ShapeLaw:
    """A fitted law.

    Attributes:
      runs: what it is fitted to.
      reference: the compute at which `best` is the best shape.
      parameters: in the coordinates of `_predicted`.
      residual: root of the mean squared relative error, with as many degrees of freedom as are left.
    """

    runs: Runs
    reference: float
    parameters: Array
    residual: float

    @property
    def exponents(self) -> dict[str, float]:
        """The powers s_k of compute by which the dimensions of the best shape grow."""
        return {name: math.exp(own[1]) for name, own in self._own()}

    @property
    def best(self) -> dict[str, float]:
        """The best shape at the reference compute."""
        scales = self._scales[0]
        return {
            name: scale * math.exp(own[3]) for (name, own), scale in zip(self._own(), scales, strict=True)
        }

    @property
    def compute_exponent(self) -> float:
        """The power c by which error falls with compute."""
        return math.exp(self.parameters[-2])

    @functools.cached_property
    def _scales(self) -> tuple[Array, float, float]:
        return _scales(self.runs, self.reference)

    def _own(self) -> list[tuple[str, Array]]:
        parts = self.parameters[:-_SHARED].reshape(-1, _OWN)
        return list(zip(self.runs.dimensions, parts, strict=True))

    def predicted(self, shapes: Array, compute: Array) -> Array:
        """Returns the errors of shapes (N, K) at compute (N,)."""
        sizes, time, height = self._scales
        return height * np.asarray(_predicted(self.parameters, shapes / sizes, compute / time))

    def exponent(self, dimension: str) -> Profile:
        """Returns s_k with its interval."""
        return self._profile(_OWN * self.runs.dimensions.index(dimension) + 1)

    def best_size(self, dimension: str) -> Profile:
        """Returns the best size of a dimension at the reference compute, with its interval."""
        place = self.runs.dimensions.index(dimension)
        scale = float(self._scales[0][place])
        found = self._profile(_OWN * place + 3)
        return Profile(
            scale * found.value,
            None if found.low is None else scale * found.low,
            None if found.high is None else scale * found.high,
        )

    def p_value(self, dimension: str, exponent: float) -> float:
        """Returns the p-value of the hypothesis that s_k has a value; it is above 0.05 in the interval."""
        place = _OWN * self.runs.dimensions.index(dimension) + 1
        normal = _normal(self.runs, self.reference)
        free = len(self.runs.errors) - len(self.parameters)
        held = self.parameters.copy()
        held[place] = math.log(exponent)
        cost = _cost(self.parameters, *normal)
        worse = _cost(_minimum(held, normal, fixed=place), *normal) - cost
        return float(stats.f.sf(worse / (cost / free), 1, free))

    def _profile(self, place: int) -> Profile:
        """Returns the exponential of a parameter with its profile-likelihood interval."""
        free = len(self.runs.errors) - len(self.parameters)
        cost = _cost(self.parameters, *_normal(self.runs, self.reference))
        bound = cost * (1 + float(stats.f.ppf(0.95, 1, free)) / free)
        ends = [self._end(place, sign, bound) for sign in (-1.0, 1.0)]
        low, high = (None if end is None else math.exp(end) for end in ends)
        return Profile(math.exp(float(self.parameters[place])), low, high)

    def _end(self, place: int, sign: float, bound: float) -> float | None:
        """Returns where the best fit with a parameter held becomes significantly worse, if it does."""
        normal = _normal(self.runs, self.reference)
        centre = float(self.parameters[place])

        def held_at(distance: float, near: Array) -> Array:
            start = near.copy()
            start[place] = centre + sign * distance
            return _minimum(start, normal, fixed=place)

        # In steps that grow, each from the fit before it, so that the fit follows the valley.
        inside, near, distance = 0.0, self.parameters, _FIRST_STEP
        while _cost(fitted := held_at(distance, near), *normal) < bound:
            inside, near, distance = distance, fitted, 1.5 * distance
            if distance > math.log(_FARTHEST):
                return None
        outside = distance
        while outside - inside > _END_ACCURACY:
            middle = (inside + outside) / 2
            if _cost(fitted := held_at(middle, near), *normal) < bound:
                inside, near = middle, fitted
            else:
                outside = middle
        return centre + sign * inside


def fit(
    runs: Runs, reference: float, seed: int = 0, starts: int = NUM_STARTS, near: Sequence[Array] = ()
) -> ShapeLaw | None:
    """Fits the law by least squares of relative errors. None with too few runs for its parameters.

    Args:
      runs: finished runs.
      reference: compute for which the best shape is asked.
      seed: of the random starts.
      starts: number of them.
      near: parameters of other laws with this reference, to start from as well.
    """
    free = len(runs.errors) - runs.num_parameters
    if free < 1:
        return None
    normal = _normal(runs, reference)
    rng = np.random.default_rng(seed)
    found = [
        _minimum(start, normal) for start in (*near, *(_start(runs, reference, rng) for _ in range(starts)))
    ]
    best = min(found, key=lambda parameters: _cost(parameters, *normal))
    # Once more from the best, because a start may have run out of steps.
    best = _minimum(best, normal)
    return ShapeLaw(runs, reference, best, math.sqrt(2 * _cost(best, *normal) / free))


def _scales(runs: Runs, reference: float) -> tuple[Array, float, float]:
    """Returns the units in which the fit is made: medians of the sizes, the reference, the median error."""
    return np.median(runs.shapes, axis=0), reference, float(np.median(runs.errors))


def _normal(runs: Runs, reference: float) -> tuple[Array, Array, Array]:
    sizes, time, height = _scales(runs, reference)
    return runs.shapes / sizes, runs.compute / time, runs.errors / height


def _predicted(parameters: Array, shapes: Array, compute: Array) -> Array:
    """Returns errors at shapes (N, K) and compute (N,).

    Parameters: for each dimension log alpha, log s, the logit of a's share of a + b, log best size at compute
    1; then log xi, log c, log eps.
    """
    log_xi, log_c, log_eps = parameters[-_SHARED:]
    c = np.exp(log_c)
    log_t, log_x = np.log(compute), np.log(shapes)
    total: Array = _exp(log_eps) + _exp(log_xi - c * log_t)
    for place, (log_alpha, log_s, logit, log_best) in enumerate(parameters[:-_SHARED].reshape(-1, _OWN)):
        both = c / np.exp(log_s)
        share = 1 / (1 + np.exp(-logit))
        a, b = both * share, both * (1 - share)
        # Of beta x^b t^-c, where the derivative by x is 0 at the best size for compute 1.
        log_beta = log_alpha + np.log(a / b) - both * log_best
        total = total + _exp(log_alpha - a * log_x[:, place])
        total = total + _exp(log_beta + b * log_x[:, place] - c * log_t)
    return total


def _exp(values: Array) -> Array:
    """Returns exponentials that stay finite, also of complex numbers, whose real parts are limited."""
    return np.asarray(np.exp(np.where(np.real(values) > _HIGHEST_EXPONENT, _HIGHEST_EXPONENT, values)))


def _residuals(parameters: Array, shapes: Array, compute: Array, errors: Array) -> Array:
    return np.asarray(_predicted(parameters, shapes, compute) / errors - 1)


def _cost(parameters: Array, shapes: Array, compute: Array, errors: Array) -> float:
    return float(np.sum(_residuals(parameters, shapes, compute, errors) ** 2) / 2)


#: Beyond it an error is so large that it need not be exact.
_HIGHEST_EXPONENT = 50.0

#: Bounds of the logarithms, so that no start runs away to where the law is flat.
_LOWEST, _HIGHEST = -25.0, 12.0


def _solved(residuals: Callable[[Array], Array], start: Array, steps: int = 300) -> Any:
    """Returns scipy's solution for the least squares of some residuals, near a start."""
    with np.errstate(over="ignore", invalid="ignore"):
        return optimize.least_squares(
            residuals,
            np.clip(start, _LOWEST + 1e-6, _HIGHEST - 1e-6),
            jac="cs",
            bounds=(_LOWEST, _HIGHEST),
            x_scale="jac",
            ftol=1e-14,
            xtol=1e-14,
            gtol=1e-14,
            max_nfev=steps,
        )


def _minimum(start: Array, normal: tuple[Array, Array, Array], fixed: int | None = None) -> Array:
    """Returns the minimum of the squared relative errors near a start, with one parameter held if wanted."""
    moving = np.array([place for place in range(len(start)) if place != fixed])

    def whole(some: Array) -> Array:
        parameters = start.astype(some.dtype)
        parameters[moving] = some
        return parameters

    return whole(_solved(lambda some: _residuals(whole(some), *normal), start[moving]).x)


def _start(runs: Runs, reference: float, rng: np.random.Generator) -> Array:
    """Draws parameters of the order that errors of networks have."""
    shapes, _, errors = _normal(runs, reference)
    least = float(errors.min())
    parts = rng.dirichlet(np.ones(len(runs.dimensions) + 2)) * least
    own = [
        [
            math.log(part),
            math.log(rng.uniform(0.1, 0.9)),
            rng.normal(),
            rng.uniform(math.log(column.min()), math.log(column.max())),
        ]
        for part, column in zip(parts, shapes.T, strict=False)
    ]
    shared = [math.log(parts[-2]), math.log(rng.uniform(0.1, 1.0)), math.log(parts[-1])]
    return np.array([*np.ravel(own), *shared])


def shared_exponents_test(laws: Sequence[ShapeLaw]) -> float:
    """Returns the p-value of the hypothesis that several families of shapes grow by the same exponents.

    Under it they share a_k, b_k and c, and have coefficients of their own. It is tested by F against separate
    fits, nested in each other.

    Args:
      laws: fits to each family, of the same dimensions and reference.
    """
    families = [law.runs for law in laws]
    normals = [_normal(law.runs, law.reference) for law in laws]
    apart = sum(_cost(law.parameters, *normal) for law, normal in zip(laws, normals, strict=True))
    size = families[0].num_parameters
    dimensions = range(len(families[0].dimensions))
    common = [*(_OWN * k + place for k in dimensions for place in (1, 2)), size - 2]
    own = [place for place in range(size) if place not in common]
    best = math.inf
    for law in laws:
        # Starts from each family's exponents, with the coefficients of all.
        start = np.concatenate([law.parameters[common], *(one.parameters[own] for one in laws)])

        def residuals(all_of_them: Array) -> Array:
            parts = []
            for number, normal in enumerate(normals):
                parameters = np.empty(size, dtype=all_of_them.dtype)
                parameters[common] = all_of_them[: len(common)]
                begins = len(common) + number * len(own)
                parameters[own] = all_of_them[begins : begins + len(own)]
                parts.append(_residuals(parameters, *normal))
            return np.concatenate(parts)

        best = min(best, float(_solved(residuals, start, steps=1000).cost))
    restrictions = len(common) * (len(families) - 1)
    free = sum(len(runs.errors) - size for runs in families)
    ratio = (best - apart) / restrictions / (apart / free)
    return float(stats.f.sf(ratio, restrictions, free))


def extrapolation_error(law: ShapeLaw, seed: int = 0) -> float | None:
    """Returns the mean relative error of predictions at the largest compute by a fit to all other runs.

    None with too few runs at other computes.
    """
    runs = law.runs
    held = runs.compute >= runs.compute.max() * (1 - 1e-9)
    # Runs of one length differ in compute, as their shapes do: a fifth of all is held out at least.
    if held.sum() < len(held) / 5:
        held = runs.compute >= np.quantile(runs.compute, 0.8)
    shorter = fit(runs[~held], law.reference, seed, _FURTHER_STARTS, [law.parameters])
    if shorter is None:
        return None
    predicted = shorter.predicted(runs.shapes[held], runs.compute[held])
    return float(np.mean(np.abs(predicted / runs.errors[held] - 1)))


def with_reference(law: ShapeLaw, reference: float) -> ShapeLaw:
    """Returns the same law with the best shape at another compute."""
    shifted = law.parameters.copy()
    factor = reference / law.reference
    c = law.compute_exponent
    own = shifted[:-_SHARED].reshape(-1, _OWN)
    own[:, 3] += np.exp(own[:, 1]) * math.log(factor)
    # t^-c in the new unit.
    shifted[-3] -= c * math.log(factor)
    return dataclasses.replace(law, reference=reference, parameters=shifted)
