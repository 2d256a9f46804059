"""The base of all errors that are the input's fault. Imports nothing, so that any module may import it."""


class UserError(ValueError):
    """An error in the user's input. The message is complete, so programs print it without a traceback."""


class Unavailable(UserError):
    """Something is not there yet. The same input may do later, so programs end with exit code 1, not 2."""
