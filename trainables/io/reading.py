"""Progress of a long read, for a person who waits for it. Nobody is told unless the program listens."""

from collections.abc import Callable

#: Is told what is read, how many of its images are done, and how many it has.
Listener = Callable[[str, int, int], None]

_listeners: list[Listener] = []


def listen(listener: Listener | None) -> None:
    """Tells a listener, in place of the one before, of all reads of this process; None tells nobody."""
    _listeners[:] = [] if listener is None else [listener]


def tell_read(what: str, done: int, total: int) -> None:
    """Tells the listener, if there is one, how far a read is."""
    for listener in _listeners:
        listener(what, done, total)
