"""The part of Go's templates that `docker --format` is used with: fields, index, json, and docker's Label."""

import json
import re
import shlex
from typing import Any

_ACTION = re.compile(r"\{\{-?\s*(.*?)\s*-?\}\}", re.S)


class TemplateError(Exception):
    """What docker says about a template it cannot use."""


def render(template: str, value: Any) -> str:
    """Raises TemplateError for a field that is not there or an action this does not know."""
    return _ACTION.sub(lambda match: _shown(_evaluate(match[1], value)), _unescaped(template))


def _unescaped(template: str) -> str:
    return template.replace("\\t", "\t").replace("\\n", "\n")


def _evaluate(action: str, value: Any) -> Any:
    try:
        words = shlex.split(action)
    except ValueError as error:
        raise TemplateError(f"template parsing error: {error}") from error
    match words:
        case ["json", path]:
            return _Raw(json.dumps(_field(path, value), separators=(",", ":")))
        case ["index", path, *keys] if keys:
            found = _field(path, value)
            for key in keys:
                found = _index(found, key)
            return found
        case [".Label", name]:
            return value.get("_labels", {}).get(name, "")
        case [path] if path.startswith("."):
            return _field(path, value)
    raise TemplateError(f"template parsing error: this VM's docker does not know '{{{{{action}}}}}'")


class _Raw(str):
    __slots__ = ()


def _field(path: str, value: Any) -> Any:
    found = value
    for name in [part for part in path.split(".") if part]:
        if not isinstance(found, dict) or name not in found:
            raise TemplateError(f'template: :1: executing "" at <{path}>: map has no entry for key "{name}"')
        found = found[name]
    return found


def _index(found: Any, key: str) -> Any:
    if isinstance(found, list):
        try:
            return found[int(key)]
        except (ValueError, IndexError) as error:
            raise TemplateError(f"template: :1: error calling index: index out of range: {key}") from error
    return (found or {}).get(key, "")


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "<nil>"
    if isinstance(value, list):
        return "[" + " ".join(_shown(item) for item in value) + "]"
    if isinstance(value, dict):
        return "map[" + " ".join(f"{key}:{_shown(value[key])}" for key in sorted(value)) + "]"
    return str(value)
