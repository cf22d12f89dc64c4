"""Optional packages: what the default run does not need, in extras of pyproject.toml."""

from importlib.util import find_spec
from typing import NamedTuple

from diffem.runtime.errors import UserError


class Extra(NamedTuple):
    """An optional package."""

    package: str
    """Its name in the package index."""
    module: str
    """The name that it is imported by."""
    extra: str
    """The extra of pyproject.toml that installs it."""

    @property
    def installed(self) -> bool:
        """Whether it is installed; it is not imported."""
        try:
            return find_spec(self.module) is not None
        except ModuleNotFoundError:  # of the package that the module is in
            return False


def check_installed(what: str, needed: Extra) -> None:
    """Checks that a package is installed.

    Arguments:
        what: What needs it, as the sentence begins.
        needed: The package.

    Raises:
        UserError: If it is not; the message has the command that installs it.
    """
    if not needed.installed:
        raise UserError(
            f"{what} needs the package {needed.package}, which is not installed: "
            f"pip install 'diffem[{needed.extra}]'"
        )
