"""The identity of a run: its content without defaults."""

import hashlib
import json
from typing import Any

from pydantic import BaseModel

from trainables.config import TrainConfig
from trainables.io.named import NamedFile


def identity(config: TrainConfig, data_fingerprint: str, start_identity: str | None = None) -> str:
    """Returns a digest of everything that decides a run's result, as 16 hexadecimal digits.

    Defaults are left out, so that a field added to the code later does not rename finished runs. Data
    enter by their fingerprint and files by their content, not by their location. A run that this one starts
    from enters by its own identity, `start_identity`.

    Raises:
      ValueError: the run starts from another and `start_identity` is missing, or the other way round.
    """
    content = _content(config) | {"data": data_fingerprint}
    if (config.start is None) != (start_identity is None):
        raise ValueError("a run that starts from another one needs that one's identity, and no other does")
    if config.start is not None:
        content["start"]["run"] = start_identity
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _content(config: BaseModel) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        # Other fields already hold what a size or recipe stands for. The location of a set is left out
        # because it does not change the result.
        if name in ("size", "recipe", "uri"):
            continue
        if name in ("name", "family") or value != field.get_default(call_default_factory=True):
            content[name] = _plain(value)
    return content


def _plain(value: Any) -> Any:
    if isinstance(value, NamedFile):
        return value.content
    if isinstance(value, BaseModel):
        return _content(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value
