"""The base of all errors that the input is at fault for. Imports nothing, so that anybody may import it."""


class UserError(ValueError):
    """Something that a person gave is at fault; the message says what, and a traceback would add nothing."""
