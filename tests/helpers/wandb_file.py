"""Reads the records of an offline W&B run: a LevelDB log of protobuf messages."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
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


def run(path: Path) -> Any:
    """Returns the record of the run: its group, job type and configuration."""
    return next(r.run for r in messages(path) if r.HasField("run"))


def summary(path: Path) -> dict[str, Any]:
    """Returns what was put into the run's summary."""
    records = [r.summary for r in messages(path) if r.HasField("summary")]
    return {item.key: json.loads(item.value_json) for s in records for item in s.update}


def table(path: Path, key: str) -> list[dict[str, Any]]:
    """Returns the rows of a table in the run's summary; of an image the file is its `path`."""
    assert summary(path)[key]["_type"] == "table-file"
    found = [r.artifact for r in messages(path) if r.HasField("artifact")]
    (artifact,) = [a for a in found if a.type == "run_table" and a.name.endswith(f"-{key}")]
    files = {content.path: Path(content.local_path) for content in artifact.manifest.contents}
    held = json.loads(files[f"{key}.table.json"].read_text())
    rows = [dict(zip(held["columns"], row, strict=True)) for row in held["data"]]
    for image in (value for row in rows for value in row.values() if isinstance(value, dict)):
        image["path"] = files[image["path"]]
    return rows


def alerts(path: Path) -> list[tuple[str, str]]:
    """Returns the title and the text of each alert."""
    found = [r.alert for r in messages(path) if r.HasField("alert")]
    return [(alert.title, alert.text) for alert in found]


def artifacts(path: Path) -> dict[str, list[str]]:
    """Returns the files of each artifact, by its type, without those of tables."""
    found = [r.artifact for r in messages(path) if r.HasField("artifact")]
    return {
        a.type: sorted(content.path for content in a.manifest.contents)
        for a in found
        if a.type != "run_table"
    }


def exit_code(path: Path) -> int | None:
    """Returns the exit code that the run was ended with; None before its last record."""
    try:
        return next((r.exit.exit_code for r in messages(path) if r.HasField("exit")), None)
    except (AssertionError, DecodeError):  # it is being written
        return None
