"""Reads the records of an offline W&B run: a LevelDB log of protobuf messages."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK, FILE_HEADER, RECORD_HEADER = 32768, 7, 7
FULL, LAST = 1, 4


def messages(path: Path) -> Iterator[Any]:
    """Yields the run's records."""
    data = path.read_bytes()
    assert data.startswith(b":W&B")
    position, parts = FILE_HEADER, b""
    while position + RECORD_HEADER <= len(data):
        left = BLOCK - position % BLOCK
        if left < RECORD_HEADER:  # a block's padding
            position += left
            continue
        length, kind = struct.unpack_from("<xxxxHB", data, position)
        position += RECORD_HEADER
        parts += data[position : position + length]
        position += length
        if kind in (FULL, LAST):
            record = getattr(wandb_internal_pb2, "Record")()  # noqa: B009 - made at run time
            record.ParseFromString(parts)
            yield record
            parts = b""


def history(path: Path) -> list[dict[str, Any]]:
    """Returns the logged rows."""
    return [
        {
            item.key or "/".join(item.nested_key): json.loads(item.value_json)
            for item in r.history.item
        }
        for r in messages(path)
        if r.HasField("history")
    ]


def step_metrics(path: Path) -> dict[str, str]:
    """Returns the counter that each defined metric runs against."""
    metrics = [r.metric for r in messages(path) if r.HasField("metric")]
    return {metric.name or metric.glob_name: metric.step_metric for metric in metrics}


def config(path: Path) -> dict[str, Any]:
    """Returns the configuration that the run was opened with."""
    (run,) = [r.run for r in messages(path) if r.HasField("run")]
    return {item.key: json.loads(item.value_json) for item in run.config.update}
