"""A reader of JSON whose every failure is a ValueError. Only the standard library."""

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """Parses a JSON text.

    Raises:
      ValueError: it is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
