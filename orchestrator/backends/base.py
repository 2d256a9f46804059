"""Facts that every backend reports about its machines."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clock:
    """One reading of another machine's clock.

    Attributes:
      whose: name of a machine or a storage.
      asked, read, answered: this machine's clock before, the other clock, this machine's clock after.
    """

    whose: str
    asked: float
    read: float
    answered: float

    @property
    def ahead(self) -> float:
        """Least seconds by which the other clock is ahead; negative if it is behind.

        0 if it reads between `asked` and `answered`.
        """
        if self.read > self.answered:
            return self.read - self.answered
        return min(self.read - self.asked, 0.0)
