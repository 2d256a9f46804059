"""The numbers of points at which verdicts are taken. It imports little, because every command needs it."""

import itertools

#: How often the first number of points may be doubled, if a sweep declares no largest number.
NUM_DOUBLINGS = 2


def look_points(points: int, max_points: int | None) -> tuple[int, ...]:
    """Returns `points`, its doublings below the last number, and the last number, which is `max_points`.

    Without `max_points` there are NUM_DOUBLINGS doublings.
    """
    last = points * 2**NUM_DOUBLINGS if max_points is None else max_points
    doubled = itertools.takewhile(lambda n: n < last, (points * 2**i for i in itertools.count()))
    return (*doubled, last)
