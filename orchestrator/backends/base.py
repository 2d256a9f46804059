"""What every backend reports of its machines."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clock:
    """One look at another clock.

    Attributes:
      whose: a machine's name, or that of a storage.
      asked, read, answered: this machine's clock before, the other one, and this machine's after.
    """

    whose: str
    asked: float
    read: float
    answered: float

    @property
    def ahead(self) -> float:
        """Seconds that the other is ahead at least (negative: behind), whenever it was looked at."""
        if self.read > self.answered:
            return self.read - self.answered
        return min(self.read - self.asked, 0.0)
