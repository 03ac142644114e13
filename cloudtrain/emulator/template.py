"""ARM's template language, as far as `az` writes it: parameters, variables, and expressions of a few functions.

Grammar of an expression (docs: azure-resource-manager/templates/template-expressions): a string of the form `[call]`;
`[[` begins an ordinary string. A call may be followed by `.name` and `[index]`; texts stand in single quotes, doubled
inside."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cloudtrain.emulator import ids
from cloudtrain.emulator.store import Json
from cloudtrain.emulator.wire import ArmError, same

_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "string": str,
    "securestring": str,
    "int": int,
    "bool": bool,
    "object": dict,
    "secureobject": dict,
    "array": list,
}
_SHOWN_TYPES = {"securestring": "SecureString", "secureobject": "SecureObject"}
_MORE = "Please see https://aka.ms/arm-syntax for usage details."


def invalid(reason: str, code: str = "InvalidTemplate") -> ArmError:
    """ARM's refusal of a template that cannot be one."""
    return ArmError(400, code, f"Deployment template validation failed: '{reason}'.")


def not_here(what: str) -> ArmError:
    return ArmError(501, "OperationNotEmulated", f"The embedded Azure does not have {what} in a template deployment.")


# parameters


def parameters(template: Json, given: Json, subscription: str, group: str) -> Json:
    """The value of every parameter. Raises ArmError InvalidTemplate."""
    declared: Json = template.get("parameters") or {}
    strangers = [name for name in given if _named(declared, name) is None]
    if strangers:
        raise invalid(
            f"The template parameters '{', '.join(strangers)}' in the parameters file are not valid; they are not "
            "present in the original template and can therefore not be provided at deployment time. The only "
            f"supported parameters for this template are '{', '.join(declared)}'. Please see "
            "https://aka.ms/arm-pass-parameter-values for usage details."
        )
    bare = Scope(subscription, group, {}, {})  # a default value knows no other parameter here
    return {name: _parameter(name, declaration, given, bare) for name, declaration in declared.items()}


def _parameter(name: str, declaration: Json, given: Json, bare: "Scope") -> Any:
    sent = _named(given, name)
    if sent is not None and "reference" in sent:
        raise not_here("parameters from a key vault")
    if sent is not None and "value" in sent:
        value = sent["value"]
    elif "defaultValue" in declaration:
        value = evaluate(declaration["defaultValue"], bare)
    else:
        raise invalid(
            f"The value for the template parameter '{name}' is not provided. Please see "
            "https://aka.ms/arm-create-parameter-file for usage details."
        )
    kind = str(declaration.get("type", "")).lower()
    if kind not in _TYPES:
        raise invalid(f"The template parameter '{name}' has no valid type. {_MORE}")
    if not isinstance(value, _TYPES[kind]) or (kind == "int" and isinstance(value, bool)):
        raise invalid(f"The provided value for the template parameter '{name}' is not valid. Expected type '{kind}'.")
    allowed = declaration.get("allowedValues")
    if allowed is not None and value not in allowed:
        shown = ",".join(str(one) for one in allowed)
        raise invalid(
            f"The provided value '{value}' for the template parameter '{name}' is not valid. The value '{value}' is "
            f"not part of the allowed value(s): '{shown}'."
        )
    return value


def shown_parameters(template: Json, values: Json) -> Json:
    """As a deployment shows them: without the value of a secure one."""
    shown: Json = {}
    for name, value in values.items():
        kind = str(template["parameters"][name]["type"]).lower()
        secure = kind.startswith("secure")
        shown[name] = {"type": _SHOWN_TYPES.get(kind, kind.capitalize())} | ({} if secure else {"value": value})
    return shown


def _named(table: Json, name: str) -> Any:
    return next((value for key, value in table.items() if same(key, name)), None)


# expressions


@dataclass(frozen=True)
class Scope:
    """What an expression may name. reference: a resource's state by its id; None where ARM allows none."""

    subscription: str
    group: str
    parameters: Json
    variables: Json
    reference: Callable[[str, bool], Any] | None = None
    _open: list[str] = field(default_factory=list)  # variables being evaluated


def evaluate(value: Any, scope: Scope) -> Any:
    """A template's value with every expression in it replaced. Raises ArmError: InvalidTemplate, or which function is
    not here."""
    if isinstance(value, dict):
        return {key: evaluate(inner, scope) for key, inner in value.items()}
    if isinstance(value, list):
        return [evaluate(inner, scope) for inner in value]
    if not isinstance(value, str) or not value.startswith("[") or not value.endswith("]"):
        return value
    if value.startswith("[["):
        return value[1:]
    words = _Words(value[1:-1])
    result = _expression(words, scope)
    if words.peek() is not None:
        raise _unreadable(value[1:-1])
    return result


def check(value: Any) -> None:
    """Raises ArmError where an expression in a template's value uses a function that is not here."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            check(inner)
    elif isinstance(value, str) and value.startswith("[") and value.endswith("]") and not value.startswith("[["):
        for name in re.findall(r"([A-Za-z_]\w*)\s*\(", re.sub(r"'(?:[^']|'')*'", "''", value)):
            _function(name)


def _function(name: str) -> "Function":
    found = _FUNCTIONS.get(name.lower())
    if found is None:
        raise not_here(f"the template function '{name}'")
    return found


_WORD = re.compile(r"\s*(?:(?P<text>'(?:[^']|'')*')|(?P<number>-?\d+)|(?P<name>[A-Za-z_]\w*)|(?P<sign>[().,\[\]]))")


class _Words:
    def __init__(self, text: str) -> None:
        self._text = text
        self._words = list(self._split())
        self._at = 0

    def _split(self) -> Iterator[tuple[str, str]]:
        at = 0
        while self._text[at:].strip():
            found = _WORD.match(self._text, at)
            if found is None or found.lastgroup is None:
                raise _unreadable(self._text)
            yield found.lastgroup, found[found.lastgroup]
            at = found.end()

    def peek(self) -> str | None:
        return self._words[self._at][1] if self._at < len(self._words) else None

    def take(self, kind: str, wanted: str | None = None) -> str:
        if self._at >= len(self._words):
            raise _unreadable(self._text)
        found, word = self._words[self._at]
        if found != kind or (wanted is not None and word != wanted):
            raise _unreadable(self._text)
        self._at += 1
        return word

    def kind(self) -> str:
        return self._words[self._at][0] if self._at < len(self._words) else ""


def _unreadable(text: str) -> ArmError:
    return invalid(f"The template language expression '{text}' is not valid. {_MORE}")


def _expression(words: _Words, scope: Scope) -> Any:
    if words.kind() == "text":
        return words.take("text")[1:-1].replace("''", "'")
    if words.kind() == "number":
        return int(words.take("number"))
    value = _call(words, scope)
    while words.peek() in (".", "["):
        value = _member(words, scope, value)
    return value


def _call(words: _Words, scope: Scope) -> Any:
    function = _function(words.take("name"))
    words.take("sign", "(")
    given: list[Any] = []
    while words.peek() != ")":
        if given:
            words.take("sign", ",")
        given.append(_expression(words, scope))
    words.take("sign", ")")
    return function(scope, given)


def _member(words: _Words, scope: Scope, value: Any) -> Any:
    sign = words.take("sign")
    key = words.take("name") if sign == "." else _expression(words, scope)
    if sign == "[":
        words.take("sign", "]")
    if isinstance(value, dict) and isinstance(key, str):
        found = [held for name, held in value.items() if same(name, key)]
        if found:
            return found[0]
    if isinstance(value, list) and isinstance(key, int) and 0 <= key < len(value):
        return value[key]
    raise invalid(f"The language expression property '{key}' doesn't exist. {_MORE}")


# functions


def _parameters(scope: Scope, given: list[Any]) -> Any:
    name = _one_text("parameters", given)
    if not any(same(known, name) for known in scope.parameters):
        raise invalid(f"The template parameter '{name}' is not found. {_MORE}")
    return _named(scope.parameters, name)


def _variables(scope: Scope, given: list[Any]) -> Any:
    name = _one_text("variables", given)
    if not any(same(known, name) for known in scope.variables):
        raise invalid(f"The template variable '{name}' is not found. {_MORE}")
    if name.lower() in scope._open:
        raise invalid(f"Circular reference detected on the template variable '{name}'. {_MORE}")
    scope._open.append(name.lower())
    try:
        return evaluate(_named(scope.variables, name), scope)
    finally:
        scope._open.pop()


def _concat(scope: Scope, given: list[Any]) -> Any:
    if given and all(isinstance(one, list) for one in given):
        return [entry for one in given for entry in one]
    if not given or any(isinstance(one, list | dict) for one in given):
        raise _wrong_arguments("concat")
    return "".join(str(one) for one in given)


def _resource_id(scope: Scope, given: list[Any]) -> str:
    """resourceId([subscription], [group], type, name...)."""
    texts = [str(one) for one in given]
    at = next((index for index, one in enumerate(texts) if "/" in one), None)
    if at is None or at > 2 or len(texts) - at - 1 != texts[at].count("/"):
        raise _wrong_arguments("resourceId")
    place = [scope.subscription, scope.group]
    place[2 - at :] = texts[:at]
    subscription, group = place
    return ids.resource_id(subscription, group, texts[at], *texts[at + 1 :])


def _reference(scope: Scope, given: list[Any]) -> Any:
    """reference(id, [api version], ['Full'])."""
    if scope.reference is None:
        raise not_here("the template function 'reference' outside of outputs")
    if not 1 <= len(given) <= 3 or not isinstance(given[0], str):
        raise _wrong_arguments("reference")
    return scope.reference(given[0], len(given) == 3 and same(str(given[2]), "Full"))


def _one_text(function: str, given: list[Any]) -> str:
    if len(given) != 1 or not isinstance(given[0], str):
        raise _wrong_arguments(function)
    return given[0]


def _wrong_arguments(function: str) -> ArmError:
    return invalid(f"Unable to evaluate template language function '{function}': its arguments are not valid. {_MORE}")


Function = Callable[[Scope, list[Any]], Any]
_FUNCTIONS: Mapping[str, Function] = {
    "parameters": _parameters,
    "variables": _variables,
    "concat": _concat,
    "resourceid": _resource_id,
    "reference": _reference,
}
