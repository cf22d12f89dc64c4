"""Lightning's way to save and load checkpoints, on top of diffem.storage.checkpoint."""

from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from diffem.storage.checkpoint import load_checkpoint, remove_checkpoint, save_checkpoint


class AtomicCheckpointIO(CheckpointIO):
    """Has a Trainer use atomic, checksummed checkpoints on local disks.

    Lightning's own writing goes through $TMPDIR and a move, without fsync and without a checksum.
    """

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: object = None,
    ) -> None:
        """Writes a checkpoint; see `diffem.storage.checkpoint.save_checkpoint`."""
        save_checkpoint(checkpoint, path)

    def load_checkpoint(  # type: ignore[override]
        self, path: str | Path, map_location: object = None, weights_only: object = None
    ) -> dict[str, Any]:
        """Returns the newest intact checkpoint; `weights_only` is forced."""
        return load_checkpoint(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Removes a checkpoint and the one before it."""
        remove_checkpoint(path)
