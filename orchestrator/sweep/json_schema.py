"""The JSON Schema (2020-12) of sweep files, with which editors complete and check them.

The schema is derived from the pydantic models, so it agrees with the program. A schema cannot check whether
names refer to each other, whether values drawn together make a run, and what a constraint means. It is
stricter in two ways: numbers in quotes are refused, and keys inside a nested setting may not be dotted.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, TypeAdapter

from orchestrator.sweep.config import Resources, Sweep
from orchestrator.sweep.space import DOMAINS, Window
from trainables.config import NAMED_MODELS, TrainConfig

Schema = dict[str, Any]

_NULL: Schema = {"type": "null"}
_PERCENT: Schema = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]*)?%$", "examples": ["10%"]}


def sweep_schema() -> Schema:
    """Returns the schema. It is self-contained: every definition is in it."""
    run, run_defs = taken_apart(TrainConfig)
    for definition in run_defs.values():
        # Nothing is required, because base, cells, arms and drawn values each give a part, and a size or a
        # recipe fills in others.
        definition.pop("required", None)
    _add_percentages({"run": run, **run_defs})
    resources, resources_defs = taken_apart(Resources)
    sweep, sweep_defs = taken_apart(Sweep)
    defs = {**sweep_defs, **resources_defs, **run_defs}
    paths = {
        **_paths(run, defs),
        "resources": {"$ref": "#/$defs/Resources", "description": summary_of(Resources)},
        **{f"resources.{path}": schema for path, schema in _paths(resources, defs).items()},
    }
    _add_short_forms(paths, defs)
    defs["Resources"] = {key: value for key, value in resources.items() if key != "$defs"}
    defs["Settings"] = {
        "description": "Settings of a run by path: dotted, or nested mappings, which mean the same.",
        "type": "object",
        "properties": paths,
        "additionalProperties": False,
    }
    defs |= _window_defs(paths)
    top: dict[str, Schema] = {
        "extends": {
            "description": "A file that this one extends, relative to it; or a list, later ones win.",
            "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
            "examples": ["lr_wd.yaml"],
        }
    }
    settings: Schema = {"$ref": "#/$defs/Settings"}
    for name, schema in sweep["properties"].items():
        kept = {key: schema[key] for key in ("description", "examples") if key in schema}
        match name:
            case "base":
                top[name] = {**settings, **kept}
            case "arms":
                top[name] = {
                    "type": "object",
                    "minProperties": 1,
                    "additionalProperties": _or_null(settings),
                    **kept,
                }
            case "cells":
                factor: Schema = {"type": "object", "additionalProperties": _or_null(settings)}
                top[name] = {"type": "object", "additionalProperties": _or_null(factor), **kept}
            case "vary":
                varied = {
                    path: {"anyOf": [{"$ref": "#/$defs/Window"}, _NULL], "description": field["description"]}
                    for path, field in paths.items()
                    if not path.startswith("resources")
                }
                top[name] = {"type": "object", "properties": varied, "additionalProperties": False, **kept}
            case _:
                top[name] = schema
    designs = []
    for definition in objects_of(top["design"], defs):
        required = ["kind", *definition.pop("required", [])]
        designs.append({"required": required, "properties": {"kind": definition["properties"]["kind"]}})
    used = {name: defs[name] for name in sorted(_reachable(top, defs))}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "vitc-sweep: a sweep",
        "description": summary_of(Sweep),
        "type": "object",
        "properties": top,
        "additionalProperties": False,
        # A file that extends another may leave all required keys to that one.
        "anyOf": [
            {"required": ["extends"]},
            {"required": ["base", "arms", "design"], "properties": {"design": {"anyOf": designs}}},
        ],
        "$defs": used,
    }


# -------------------------------------------------------------------------------------------- the parts


def taken_apart(model: type[BaseModel]) -> tuple[Schema, dict[str, Schema]]:
    """Returns a model's schema and its definitions, in the form in which files are written."""
    schema = _tidied(model.model_json_schema())
    definitions: dict[str, Schema] = schema.pop("$defs", {})
    for definition in definitions.values():
        _describe(definition)
    _describe(schema)
    return schema, definitions


def _tidied(node: Any) -> Any:
    """Returns a schema without titles, because they repeat the names, and with unions as `anyOf`.

    `oneOf` would refuse a part that fits several members.
    """
    if isinstance(node, list):
        return [_tidied(item) for item in node]
    if not isinstance(node, dict):
        return node
    result: Schema = {}
    for key, value in node.items():
        if key in ("properties", "$defs"):
            result[key] = {name: _tidied(item) for name, item in value.items()}
        elif key == "oneOf":
            result["anyOf"] = _tidied(value)
        elif key in ("default", "examples", "const", "enum"):
            result[key] = value
        elif not (key == "discriminator" or (key == "title" and isinstance(value, str))):
            result[key] = _tidied(value)
    return result


def _describe(definition: Schema) -> None:
    """Copies the description of a union's member to the constant that selects the member."""
    for field in definition.get("properties", {}).values():
        if "const" in field and "description" not in field and "description" in definition:
            field["description"] = definition["description"].split("\n\n")[0].replace("\n", " ")


def summary_of(model: type[BaseModel]) -> str:
    """Returns the first paragraph of a model's documentation, on one line."""
    return (model.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")


def _or_null(schema: Schema) -> Schema:
    """Returns a schema that also allows null, which removes the key of an extended file."""
    return {"anyOf": [schema, _NULL]}


def _add_percentages(schemas: Mapping[str, Schema]) -> None:
    for schema in schemas.values():
        for field in schema.get("properties", {}).values():
            members = field.get("anyOf", [])
            if {"$ref": "#/$defs/Share"} in members:
                members.append(_PERCENT)


def _add_short_forms(paths: Mapping[str, Schema], defs: Mapping[str, Schema]) -> None:
    """Adds short forms: `model: vit_c_4gf`, `data: digits` or a path, `augment: paper`, `optim: sgd`."""
    words: dict[str, Schema] = {
        "model": {"enum": list(NAMED_MODELS), "description": "A model by its name."},
        "data": {"type": "string", "description": "digits, or a Parquet file, folder or URI."},
    }
    for path in ("augment", "optim"):
        names = [
            field["const"]
            for field in _fields(objects_of(paths[path], defs)).get("name", [])
            if "const" in field
        ]
        words[path] = {"enum": names, "description": "A name; all other settings take their defaults."}
    for path, schema in words.items():
        whole = {key: paths[path].pop(key) for key in ("$ref", "anyOf") if key in paths[path]}
        paths[path]["anyOf"] = [schema, *whole.get("anyOf", [whole])]


def _fields(objects: Iterable[Schema]) -> dict[str, list[Schema]]:
    """Returns the properties of objects, by name."""
    found: dict[str, list[Schema]] = {}
    for member in objects:
        for name, field in member.get("properties", {}).items():
            if field not in found.setdefault(name, []):
                found[name].append(field)
    return found


def objects_of(schema: Schema, defs: Mapping[str, Schema]) -> Iterator[Schema]:
    """Yields the objects with named keys that a schema allows, those behind references included."""
    if "$ref" in schema:
        yield from objects_of(defs[schema["$ref"].rpartition("/")[2]], defs)
    for member in schema.get("anyOf", ()):
        yield from objects_of(member, defs)
    if "properties" in schema:
        yield schema


def _paths(
    schema: Schema, defs: Mapping[str, Schema], prefix: str = "", around: frozenset[int] = frozenset()
) -> dict[str, Schema]:
    """Returns a schema for every dotted path. Settings of one name in several members share a path.

    Paths end where an object contains itself: objects in `around` are skipped.
    """
    objects = [member for member in objects_of(schema, defs) if id(member) not in around]
    within = around | {id(member) for member in objects}
    found: dict[str, Schema] = {}
    for name, fields in _fields(objects).items():
        found[f"{prefix}{name}"] = _together(fields)
        found |= _paths({"anyOf": fields}, defs, f"{prefix}{name}.", within)
    return found


def _together(fields: Sequence[Schema]) -> Schema:
    if len(fields) == 1:
        return dict(fields[0])
    if all("const" in field for field in fields):
        texts = [f"{field['const']}: {field['description']}" for field in fields]
        return {"enum": [field["const"] for field in fields], "description": " ".join(texts)}
    texts = list(dict.fromkeys(field["description"] for field in fields if "description" in field))
    return {"anyOf": list(fields), "description": " / ".join(texts)}


def _window_defs(paths: Mapping[str, Schema]) -> dict[str, Schema]:
    """Returns the definitions of windows: a domain, or domains by arm or level, with `when` and `zip`."""
    fields = TypeAdapter(Window).json_schema()["properties"]
    beside: dict[str, Schema] = {
        "when": {
            "description": fields["when"]["description"],
            "examples": fields["when"]["examples"],
            "type": "object",
            "properties": {path: {"description": field["description"]} for path, field in paths.items()},
            "additionalProperties": False,
        },
        "zip": {key: fields["zip"][key] for key in ("description", "examples")} | {"type": "string"},
    }
    defs: dict[str, Schema] = {"When": beside["when"]}
    beside["when"] = {"$ref": "#/$defs/When"}
    bare, whole = [], []
    for domain in DOMAINS:
        schema = _tidied(domain.model_json_schema())
        defs[domain.__name__] = schema
        defs[f"{domain.__name__}Window"] = schema | {"properties": schema["properties"] | beside}
        bare.append({"$ref": f"#/$defs/{domain.__name__}"})
        whole.append({"$ref": f"#/$defs/{domain.__name__}Window"})
    defs["Domain"] = {"anyOf": bare}
    by_name: Schema = {
        "description": "One domain per arm, or per level of one factor of cells.",
        "type": "object",
        "properties": beside,
        "additionalProperties": {"$ref": "#/$defs/Domain"},
        "minProperties": 1,
    }
    defs["Window"] = {"description": summary_of(Window), "anyOf": [*whole, by_name]}
    return defs


def _reachable(node: Any, defs: Mapping[str, Schema], seen: set[str] | None = None) -> set[str]:
    """Returns the names of the definitions that a schema refers to, directly or indirectly."""
    seen = set() if seen is None else seen
    if isinstance(node, dict):
        name = str(node.get("$ref", "")).rpartition("/")[2]
        if name and name not in seen:
            seen.add(name)
            _reachable(defs[name], defs, seen)
        for value in node.values():
            _reachable(value, defs, seen)
    elif isinstance(node, list):
        for item in node:
            _reachable(item, defs, seen)
    return seen
