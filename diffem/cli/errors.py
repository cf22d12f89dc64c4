"""Shows user errors of every command in one sentence, with exit code 1 and no traceback."""

import errno
import os
import re
import sys
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from diffem.cli.compose import merge_fault, sibling_keys
from diffem.config.secrets import redact_text
from diffem.runtime.errors import FULL, UserError
from diffem.runtime.rank import global_rank
from diffem.runtime.signals import RANK_DIED, exit_now, report_error
from diffem.storage.atomic import FREE_SOME

REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)  # by the system: rights, a read-only disk
NO_MEMORY = "out of memory|can't allocate memory|unable to mmap"
LESS_OF_A_RUN = (
    "start in a new run_dir with a lower em.batch_size or em.chunk_size, or a smaller network or "
    "data set"
)
MORE_MEMORY = "free some, take a device or a machine with more, or give it less at a time"


@contextmanager
def report_user_errors(*, out_of_memory: str = MORE_MEMORY) -> Iterator[None]:
    """Opens a scope in which a user error ends the process with one sentence.

    Arguments:
        out_of_memory: What to do where the memory is too small for what the command does.

    Raises:
        SystemExit: With code 1, after the sentence. Other exceptions pass.
    """
    try:
        yield
    except (UserError, FloatingPointError, HydraException, OmegaConfBaseException) as error:
        where = f"process {rank}: " if (rank := global_rank()) else ""
        report_error(f"{where}error: {redact_text(sentence(error))}")
        sys.exit(1)
    except OSError as error:
        if error.errno in REFUSED and error.filename:
            report_error(
                f"error: {error.filename}: {(error.strerror or '').lower()}; allow this user to "
                "read and write there, or give another path"
            )
            sys.exit(1)
        if error.errno not in FULL:
            raise
        where = f" while writing {error.filename}" if error.filename else ""
        report_error(f"error: no space left on the disk{where}; {FREE_SOME}")
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or re.search(NO_MEMORY, str(error)):
            line = str(error).splitlines()[0] if str(error) else "no more is available"
            report_error(f"error: out of memory ({line}); {out_of_memory}")
            sys.exit(1)
        if re.search("EADDRINUSE|[Aa]ddress already in use", str(error)):
            report_error(
                f"error: MASTER_PORT={os.environ.get('MASTER_PORT')}, where the processes of the "
                "run meet, is in use on this machine; set MASTER_PORT to a free port, the same "
                "for all processes"
            )
            sys.exit(1)
        if re.search(r"\bgloo\b|\bNCCL\b|Connection closed by peer", str(error)):
            # A collective fails when a rank is gone; the watch over the ranks can say which.
            time.sleep(1.0)
            exit_now(RANK_DIED, 1)
        raise


def sentence(error: Exception) -> str:
    """Returns an exception's message for the user."""
    text = str(error)
    if isinstance(error, UserError | FloatingPointError):
        return text
    if isinstance(error, OverrideParseException):
        held = [c for c in error.override if unicodedata.category(c) == "Cc"]
        advice = (
            f"it holds {held[0]!r} (a file with line ends of Windows?): remove it"
            if held
            else "quote a value with spaces, letters like é, or signs, as in KEY='\"A VALUE\"'"
        )
        return f"{error.override!r} cannot be read as KEY=VALUE; {advice}"
    if choice := re.search(r"Could not find '([\w/]+)/(.+?)'", text):
        group, name = choice.groups()
        known = ", ".join(re.findall(r"^\t([\w-]+)$", text, flags=re.MULTILINE))
        return f"{group}={name} is not a choice; {group} can be: {known}"
    if key := re.search(r"Could not override '([\w.@/]+)'", text):
        name = key.group(1)
        if name.startswith("assumed."):  # which names what differs, so it starts empty
            return f"{name} is not in the config yet; add it by +{name}=VALUE"
        if name in (allowed := sibling_keys(name)).split(", "):
            parent = name.rpartition(".")[0]
            return f"{name} has no effect, since {parent} is null here; leave one of them out"
        return f"{name} is not a key of the config; allowed: {allowed or 'none beside it'}"
    merged = re.fullmatch(r"Error merging override (.+)", text, flags=re.DOTALL)
    if merged and (fault := merge_fault(merged[1])):
        return fault
    if isinstance(error, MissingMandatoryValue):
        key = str(error.full_key).replace("[", ".").replace("]", "")
        return f"{key} must be given: {key}=VALUE"
    return " ".join(text.split())
