"""Keeps secrets out of files, logs and W&B.

A value is secret if its key is named like one: token, password, api_key and so on. A secret on a
command line is moved to an environment variable, and `${oc.env:NAME}` takes its place; a secret in
a configuration file is left out where the configuration is saved. Interpolations are saved
unresolved.
"""

import os
import re
from collections.abc import Iterable
from typing import Any

from diffem.runtime.errors import UserError

REDACTED = "(hidden)"
PREFIX = "DIFFEM_"  # of the environment variables that take secrets of a command line
SHORTEST = 8  # characters of a secret that is looked for in a text
_NAME = re.compile(
    r"(token|secrets?|passwords?|passwd|passphrase|credentials?|(api|access|private)[-_]?key)$",
    re.IGNORECASE,
)
_INNER_KEY = re.compile(r"[{,]\s*[\"']?([\w-]+)[\"']?\s*:")


def is_secret(name: str) -> bool:
    """Returns whether a key, or one that it is under, is named like a secret."""
    return any(_NAME.search(part) for part in name.split("."))


def move_secrets_to_env(arguments: Iterable[str]) -> list[str]:
    """Moves the secrets among a command's arguments to environment variables.

    hub.token=VALUE becomes hub.token=${oc.env:DIFFEM_HUB_TOKEN}. Processes that this one starts
    inherit the variable; a run that is resumed needs the secret again.

    Arguments:
        arguments: The arguments.

    Returns:
        The arguments without secrets.

    Raises:
        UserError: If a secret is inside another value, or a resumed run's secret is not given.
    """
    return [_move_to_env(argument) for argument in arguments]


def _move_to_env(argument: str) -> str:
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


def redact_config(value: Any, name: str = "") -> Any:  # noqa: ANN401 - a container of plain types
    """Returns a configuration with REDACTED in place of its secrets.

    Arguments:
        value: The configuration, or a part of it, in plain types.
        name: The part's full key.
    """
    if isinstance(value, dict):
        return {k: redact_config(v, f"{name}.{k}" if name else str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [redact_config(v, name) for v in value]
    if value is None or (isinstance(value, str) and "${" in value):
        return value
    return REDACTED if is_secret(name) else value


def redact_text(text: str) -> str:
    """Returns a text with REDACTED in place of the secrets in environment variables."""
    for variable, value in os.environ.items():
        if is_secret(variable) and len(value) >= SHORTEST:
            text = text.replace(value, REDACTED)
    return text
