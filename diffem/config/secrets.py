"""Secrets: no file that a run writes, and nothing that it says, holds one in clear.

A secret is what stands under a key whose name says so. On a command line it is moved to the
environment before anything sees it, and `${oc.env:NAME}` takes its place; in a configuration file
it is left out where the configuration is saved. Interpolations are saved as they are written.
"""

import os
import re
from collections.abc import Iterable
from typing import Any

from diffem.runtime.errors import UserError

HIDDEN = "(hidden)"
PREFIX = "DIFFEM_"  # of the environment's variables that hold what a command line held
SHORTEST = 8  # characters of a secret that is looked for in a sentence
_NAME = re.compile(
    r"(token|secrets?|passwords?|passwd|passphrase|credentials?|(api|access|private)[-_]?key)$",
    re.IGNORECASE,
)
_INNER_KEY = re.compile(r"[{,]\s*[\"']?([\w-]+)[\"']?\s*:")


def is_secret(name: str) -> bool:
    """Returns whether a key's name says that a secret stands there, or under it."""
    return any(_NAME.search(part) for part in name.split("."))


def hidden(arguments: Iterable[str]) -> list[str]:
    """Returns a command's arguments with their secrets moved to the environment.

    hub.token=VALUE becomes hub.token=${oc.env:DIFFEM_HUB_TOKEN}; processes that this one starts
    inherit the variable, and a run that goes on needs it again.

    Raises:
        UserError: If a secret stands inside another value, or one that is needed again is absent.
    """
    return [_hidden(argument) for argument in arguments]


def _hidden(argument: str) -> str:
    override, equals, text = argument.partition("=")
    key = override.lstrip("+~")
    if inner := [name for name in _INNER_KEY.findall(text) if is_secret(name)]:
        raise UserError(
            f"{key} holds {inner[0]}; give it as a key of its own: +{key}.{inner[0]}=VALUE"
        )
    if not equals or not is_secret(key) or text.lower() in ("", "null"):
        return argument
    variable = PREFIX + re.sub(r"\W", "_", key).upper()
    reference = f"${{oc.env:{variable}}}"
    if text == reference and variable not in os.environ:
        raise UserError(f"{key} was not saved with the run; give it again: {override}=VALUE")
    if "${" in text:
        return argument
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    os.environ[variable] = text[1:-1] if quoted else text
    return f"{override}={reference}"


def redacted(value: Any, name: str = "") -> Any:  # noqa: ANN401 - a container of plain types
    """Returns a configuration of plain types with HIDDEN in place of its secrets."""
    if isinstance(value, dict):
        return {k: redacted(v, f"{name}.{k}" if name else str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [redacted(v, name) for v in value]
    if value is None or (isinstance(value, str) and "${" in value):
        return value
    return HIDDEN if is_secret(name) else value


def told(sentence: str) -> str:
    """Returns a sentence without the values of the environment's secrets."""
    for variable, value in os.environ.items():
        if is_secret(variable) and len(value) >= SHORTEST:
            sentence = sentence.replace(value, HIDDEN)
    return sentence
