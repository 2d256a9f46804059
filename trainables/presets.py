"""Short names of models and recipes, and settings by dotted path."""

from collections.abc import Iterator, Mapping
from typing import Any

#: The settings that a model's name stands for, as in `model: vit_c_4gf`. They are the distinguishing ones
#: only, so that a size or stem set in addition to a name takes effect.
SHORT_MODELS: dict[str, dict[str, Any]] = {
    **{
        f"vit_{letter}_{size}": {"family": "vit", "size": size, "stem": stem}
        for size in ("1gf", "4gf", "16gf", "18gf", "36gf", "72gf")
        for letter, stem in (("p", "patchify"), ("c", "conv"))
    },
    **{
        f"deepvit_{size}": {"family": "vit", "size": f"deepvit_{size}"}
        for size in ("16b", "24b", "32b", "s", "l")
    },
    **{f"regnety_{size}": {"family": "regnety", "size": size} for size in ("1gf", "4gf", "16gf", "32gf")},
    "regnetz_4gf": {"family": "regnetz", "size": "4gf"},
    **{
        f"efficientnet_{variant}": {"family": "efficientnet", "variant": variant}
        for variant in ("b0", "b2", "b4", "b5")
    },
    **{f"resnet_{layers}": {"family": "resnet", "layers": layers} for layers in (50, 101, 152, 200)},
}


#: Settings that belong together; settings of the file override them.
RECIPES: dict[str, dict[str, Any]] = {
    "light": {
        "augment": {"name": "light"},
        "schedule": {"epochs": 20},
        "batch_size": 64,
        "label_smoothing": 0.1,
    },
    # Xiao et al. 2021, section 3 and appendix, and the authors' code.
    "paper": {
        "augment": {"name": "paper"},
        "mixup": {},
        "schedule": {"epochs": 100, "warmup": 5, "per": "epoch"},
        "batch_size": 2048,
        "label_smoothing": 0.1,
        "ema": {},
        "precise_bn_images": 8192,
    },
}


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every value of a nested mapping with its dotted path. An empty mapping is a value."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def expand(path: str, value: Any) -> Any:
    """Expands a short form at a path: `model: vit_c_4gf`, `data: digits`, `augment: paper`."""
    path = _in_its_run(path)
    if isinstance(value, str):
        if path == "model" and value in SHORT_MODELS:
            return dict(SHORT_MODELS[value])
        if path == "data":
            return {"name": "digits"} if value == "digits" else {"name": "parquet", "path": value}
        if path in ("augment", "optim", "model.attention"):
            return {"name": value}
    return value


def _in_its_run(path: str) -> str:
    """Returns a path relative to its own run: `model.stem` for `start.run.model.stem`."""
    return path.rpartition("start.run.")[2]


def tells_apart(path: str) -> bool:
    """Returns whether a setting names the member of a union: `family` of a model, else `name`."""
    whole, _, last = _in_its_run(path).rpartition(".")
    return last == ("family" if whole.partition(".")[0] == "model" else "name")


def set_path(tree: dict[str, Any], path: str, value: Any) -> None:
    """Sets a dotted path in a tree of dicts, in place. Short forms along the path and in the value expand.

    Changing what tells members of a union apart removes the settings next to it, because they belonged to the
    old member.
    """
    *parents, last = path.split(".")
    where = ""
    for key in parents:
        where = f"{where}.{key}".lstrip(".")
        child = expand(where, tree.get(key))
        if _in_its_run(where) == "model" and isinstance(child, str):
            # No model has this name. It stays, so that validation reports it.
            return
        tree[key] = child = dict(child) if isinstance(child, Mapping) else {}
        tree = child
    if tells_apart(path) and tree.get(last, value) != value:
        tree.clear()
    value = expand(path, value)
    tree[last] = dict(value) if isinstance(value, Mapping) else value


def set_paths(tree: dict[str, Any], settings: Mapping[str, Any]) -> None:
    """Sets many dotted paths: wholes before parts, and names first, because they decide which parts exist."""

    def rank(path: str) -> tuple[int, bool]:
        return path.count("."), not tells_apart(path)

    for path in sorted(settings, key=rank):
        set_path(tree, path, settings[path])
