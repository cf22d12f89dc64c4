"""Keeps secrets out of files, logs and W&B.

A value is secret if its key is named like one: token, password, api_key, auth and so on; so is
the password in a URL. A secret on a command line is moved to an environment variable, and
`${oc.env:NAME}` takes its place; a secret in a configuration file is left out where the
configuration is saved. Interpolations are saved unresolved.
"""

import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf, flag_override

from diffem.runtime.errors import UserError

REDACTED = "(hidden)"
PREFIX = "DIFFEM_"  # of the environment variables that take secrets of a command line
FOLDERS = ("OLDPWD", "PWD")  # of a shell: no passwords
SHORTEST = 8  # characters of a secret that is looked for in a text
_NAME = re.compile(  # of one part of a key, or its end; a part in capitals or camelCase too
    r"(token|secrets?|passwords?|passwd|passphrase|credentials?"
    r"|(api|access|private|secret|signing|encryption|account|auth|ssh|license"
    r"|hf|hub|wandb|service|master|shared|storage)[-_]?key)$"
    r"|(^|[-_])(auth|authorization|pwd|pass|pat|bearer|cookie|dsn)$",
    re.IGNORECASE,
)
_TEXT = r"[\"']?([A-Za-z][\w.-]*)[\"']?\s*"
_INNER_KEY = re.compile(rf"[{{,]\s*{_TEXT}:")
_KEY = re.compile(rf"\s*[+~]*\s*{_TEXT}(?=[=:\s])")  # of an argument, malformed or not
_URL = re.compile(r"(\w[\w+.-]*://[^/\s:@]*):[^/\s@]+@")  # with a password


def is_secret(name: str) -> bool:
    """Returns whether a key, or one that it is under, is named like a secret."""
    # githubPat is github_Pat
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return any(_NAME.search(part) for part in words.split("."))


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
    override = override.strip()
    key = override.lstrip("+~").strip()
    if inner := [name for name in _INNER_KEY.findall(text) if is_secret(name)]:
        raise UserError(
            f"{key} holds {inner[0]}; give it as a key of its own: +{key}.{inner[0]}=VALUE"
        )
    if REDACTED in text:
        raise UserError(f"{key} was not saved with the run; give it again: {override}=VALUE")
    first = _KEY.match(argument)
    if first and is_secret(first[1]) and (not equals or first[1] != key):
        raise UserError(
            f"{first[1]} is not given as KEY=VALUE; give it as +{first[1]}=VALUE, without spaces"
        )
    if not equals or not is_secret(key) or text.strip().lower() in ("", "null"):
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
    if is_secret(name):
        return REDACTED
    return _URL.sub(rf"\1:{REDACTED}@", value) if isinstance(value, str) else value


def redact_in_place(cfg: DictConfig) -> None:
    """Puts REDACTED in place of the secrets of a configuration that a library is going to save."""
    plain = OmegaConf.to_container(cfg, resolve=False)
    with flag_override(cfg, ["readonly", "struct"], False):
        for key in _changed(plain, redact_config(plain)):
            OmegaConf.update(cfg, key, REDACTED)


def _changed(a: Any, b: Any, key: str = "") -> Iterator[str]:  # noqa: ANN401
    """Yields the keys of the values that differ between two containers of one structure."""
    if isinstance(a, dict | list):
        for name in a if isinstance(a, dict) else range(len(a)):
            yield from _changed(a[name], b[name], f"{key}[{name}]" if key else str(name))
    elif a != b:
        yield key


def redact_text(text: str) -> str:
    """Returns a text with REDACTED in place of the secrets in environment variables."""
    for variable, value in os.environ.items():
        if variable not in FOLDERS and is_secret(variable) and len(value) >= SHORTEST:
            text = text.replace(value, REDACTED)
    return _URL.sub(rf"\1:{REDACTED}@", text)
