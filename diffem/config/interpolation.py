"""Interpolations: `${key.path}`, `${now:FORMAT}`, `${oc.env:NAME}` and `${hydra:…}`, no others.

OmegaConf calls any resolver that a value names, and some make new nodes out of text. Those that
are left give texts or other nodes of the configuration. `expanded` puts the nodes in place, so
that what comes out can be checked like the rest, at a cost that has a bound.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from diffem.runtime.errors import UserError

VALUES = 20_000
"""The largest number of values in a configuration; a run's has about 100."""
DEPTH = 50
"""The largest depth of a configuration's nodes."""
LONGEST = 100_000
"""The largest number of characters of a text, but for one that carries a file's content."""
CONTENT = "data:"
"""How a text begins that carries a file's content (RFC 2397); it is not put into other texts."""

_KEY = r"\.*[\w-]+(?:\.[\w-]+|\[[\w-]+\])*"
_RESOLVERS = (
    r"now:[^${}'\"]*",
    r"oc\.env:\w+(?:,[^${}]*)?",
    r"hydra:(?:runtime\.choices\.[\w/-]+|job\.(?:num|name)|runtime\.cwd)",
)
_ALLOWED = re.compile(rf"\$\{{(?:({_KEY})|{'|'.join(_RESOLVERS)})\}}")
SENTENCE = "allowed are ${KEY}, ${now:FORMAT}, ${oc.env:NAME} and ${hydra:runtime.choices.GROUP}"


def check_interpolations(config: object, where: str = "") -> None:
    """Checks every interpolation in a container of plain types, and the container's size.

    Arguments:
        config: The container.
        where: Its full key.

    Raises:
        UserError: If a value holds another interpolation than those that are allowed, or there
            are more than VALUES values, or deeper nodes than DEPTH.
    """
    for count, (key, value) in enumerate(_values(config, where)):
        if count > VALUES:
            raise UserError(f"the configuration has more than {VALUES} values; give fewer")
        if isinstance(value, str):
            if len(value) > LONGEST and not value.startswith(CONTENT):
                raise UserError(f"{key} has more than {LONGEST} characters; give a shorter text")
            if "${" in _ALLOWED.sub("", value):
                raise UserError(
                    f"{key} holds an interpolation that is not allowed; {SENTENCE}, not inside "
                    "one another"
                )


def expanded(config: Mapping[Any, Any]) -> Any:  # noqa: ANN401 - as the configuration
    """Returns a configuration with the nodes that interpolations name in their places.

    Values that are a text and an interpolation, and those of resolvers, stay as they are.

    Arguments:
        config: The configuration, in plain types, after `check_interpolations`.

    Raises:
        UserError: If it would hold more than VALUES values, or texts of more than LONGEST
            characters, or interpolations lead in a circle.
    """
    return _Expansion(config).node(config, (), 0)


class _Expansion:
    def __init__(self, root: Mapping[Any, Any]) -> None:
        self.root, self.count = root, 0

    def node(self, node: object, path: tuple[str, ...], depth: int) -> Any:  # noqa: ANN401
        self.count += 1
        if self.count > VALUES or depth > DEPTH:
            raise UserError(
                f"the configuration's interpolations lead in a circle, or to more than {VALUES} "
                "values; remove some"
            )
        if isinstance(node, Mapping):
            return {k: self.node(v, (*path, str(k)), depth + 1) for k, v in node.items()}
        if isinstance(node, list):
            return [self.node(v, (*path, str(i)), depth + 1) for i, v in enumerate(node)]
        if not isinstance(node, str) or "${" not in node:
            return node
        match = _ALLOWED.fullmatch(node)
        if match is None or match[1] is None:
            self.length(node, path, depth)
            return node
        found, at = self.select(match[1], path)
        return self.node(found, at, depth + 1)

    def length(self, text: str, path: tuple[str, ...], depth: int) -> int:
        """Returns the number of characters of a text, interpolations in place, if it is small."""
        total, self.count = len(text), self.count + 1
        for match in _ALLOWED.finditer(text):
            if match[1] is not None:
                found, at = self.select(match[1], path)
                value = self.node(found, at, depth + 1)
                total += self.length(value, at, depth + 1) if isinstance(value, str) else 0
        if total > LONGEST or self.count > VALUES:
            raise UserError(
                f"{'.'.join(path)} has more than {LONGEST} characters when its interpolations are "
                "in place; give a shorter text"
            )
        return total

    def select(self, key: str, path: tuple[str, ...]) -> tuple[object, tuple[str, ...]]:
        """Returns the value and the path of a key; None if there is none, as OmegaConf says."""
        names = re.findall(r"[\w-]+", key)
        dots = len(key) - len(key.lstrip("."))
        at = (*(path[:-dots] if dots else ()), *names)
        node: Any = self.root
        for i, name in enumerate(at):
            if isinstance(node, Mapping):
                node = next((v for k, v in node.items() if str(k) == name), None)
            elif isinstance(node, list) and name.isdecimal() and int(name) < len(node):
                node = node[int(name)]
            elif isinstance(node, str) and (match := _ALLOWED.fullmatch(node)) and match[1]:
                raise UserError(
                    f"${{{key}}} leads through {'.'.join(at[:i])}, an interpolation; name the key "
                    "that it stands for"
                )
            else:
                return None, at
        return node, at


def _values(node: object, where: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yields the full key and the value of everything in a container."""
    if depth > DEPTH:
        raise UserError(f"{where[:80]}… is nested more than {DEPTH} deep; give a flatter value")
    yield where, node
    if isinstance(node, Mapping | list):
        items = node.items() if isinstance(node, Mapping) else enumerate(node)
        for key, value in items:
            if isinstance(key, str) and "${" in key:
                raise UserError(f"{where}: a key holds an interpolation; give it as it is")
            yield from _values(value, f"{where}.{key}" if where else str(key), depth + 1)
