"""What lies in a run directory, before it is read or written: files and folders alone.

A directory from elsewhere may hold symbolic links, through which writing would change files
outside it, and pipes, at which reading waits for ever.
"""

import os
from pathlib import Path

from diffem.runtime.errors import UserError

LINKS_OF = "wandb"  # W&B's folder, where it makes links to its own files
COPY = "allow this user to write there, or copy the run to a folder that can be written"


def check_entries(folder: Path, *, writing: bool) -> None:
    """Refuses a directory that holds anything but files, folders and harmless links.

    Arguments:
        folder: The directory, perhaps by a link to it; it may be absent.
        writing: Whether the directory is going to be written to. No link in it is followed then,
            except W&B's own, which stay in its folder.

    Raises:
        UserError: If there is a pipe, a socket or a device in it; where it is written to, also if
            there is a link.
    """
    if not folder.is_dir():
        return
    open_folders, root = [folder], folder.resolve()
    while open_folders:
        with os.scandir(open_folders.pop()) as entries:
            for entry in entries:
                path = Path(entry.path)
                if entry.is_symlink():
                    if writing and not _is_of_wandb(path, folder, root):
                        raise UserError(
                            f"{path} is a symbolic link, and nothing is written through one; "
                            "replace it by what it leads to, or choose another directory"
                        )
                    if not (path.is_file() or path.is_dir()) and path.exists():
                        raise _no_file(path)
                elif entry.is_dir():
                    open_folders.append(path)
                elif not entry.is_file():
                    raise _no_file(path)


def check_writable(folder: Path, advice: str) -> None:
    """Refuses a folder in which no file can be made, before the work that a file is to hold.

    Arguments:
        folder: The folder; it may be absent, and is made in the first that exists above it.
        advice: What to do instead, the end of the sentence.

    Raises:
        UserError: If the folder is read-only, or the one that it would be made in.
    """
    above = folder.absolute()
    existing = next(each for each in (above, *above.parents) if each.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{existing} cannot be written; {advice}")


def _is_of_wandb(link: Path, folder: Path, root: Path) -> bool:
    """Returns whether a link is one of W&B's.

    They lead to something in its own folder, or, in the logs of a run of W&B that is over, to a
    log of its own elsewhere; a run that is resumed has another folder for its logs.
    """
    parts = link.relative_to(folder).parts
    if LINKS_OF not in parts[:-1]:
        return False
    own = parts[: parts.index(LINKS_OF) + 1]
    if len(parts) == len(own) + 3 and parts[-2] == "logs":
        return True
    try:
        return link.resolve().is_relative_to(root.joinpath(*own))
    except (OSError, RuntimeError):  # in a circle
        return False


def _no_file(path: Path) -> UserError:
    return UserError(f"{path} is neither a file nor a folder; remove it")
