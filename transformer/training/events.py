"""The metrics of metrics.jsonl as TensorBoard scalars: one event file in the workdir."""

import errno
import os
import struct
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

PREFIX = "events.out.tfevents."  # TensorBoard reads what has "tfevents" in its name, in the order of the names


class Events:
    """Appends one record per line. Of a resumed run's records, those with true `keep(step, tags)` remain. They are
    moved, with their times, to a file of a later name, whose first record cancels all earlier points: an open
    TensorBoard redraws them after a restart, and any other reader finds each point once. A record has its length (8
    bytes), a checksum of that, a protocol buffer `Event`, and its checksum."""

    def __init__(self, workdir: Path, keep: Callable[[int, Collection[str]], bool]):
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        before = sorted(workdir.glob(f"{PREFIX}*"))
        self.path = workdir / f"{PREFIX}{time.time_ns()}"
        started = Event(step=0, session_log=SessionLog(status=SessionLog.START), wall_time=time.time())
        records = [_record(Event(file_version="brain.Event:2", wall_time=time.time())), _record(started)]
        for record, event in _read(before[-1]) if before else ():
            tags = [value.tag for value in event.summary.value]
            if tags and keep(event.step, tags):
                records.append(record)
        replace(self.path, b"".join(records))
        for path in before:
            path.unlink()

    def write(self, step: int, scalars: dict[str, float]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        append(self.path, _record(Event(step=step, wall_time=time.time(), summary=Summary(value=values))))


def tag_of(name: str) -> str:
    """A metric's tag; TensorBoard groups tags by their prefix."""
    return name.replace("_", "/", 1) if name.startswith("validation_") else f"training/{name}"


def append(path: Path, data: bytes) -> None:
    """Appends to a file. OSError: it cannot; then nothing is written, since a partial record would corrupt the
    following ones."""
    with path.open("ab", buffering=0) as file:
        before = file.tell()
        try:
            if file.write(data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            file.truncate(before)
            raise


def replace(path: Path, data: bytes) -> None:
    """Writes a file that is, whatever happens meanwhile, either the old or the new one. OSError: it cannot."""
    part = path.with_name(".unfinished")  # without "tfevents"
    part.write_bytes(data)
    part.replace(path)


def _record(event: Any) -> bytes:
    from tensorboardX.record_writer import masked_crc32c

    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))


def _read(path: Path) -> Iterator[tuple[bytes, Any]]:
    """The complete records of a file, without those that make no sense; the last may be truncated."""
    from google.protobuf.message import DecodeError
    from tensorboardX.proto.event_pb2 import Event

    data, at = path.read_bytes(), 0
    while at + 8 <= len(data):
        end = at + 16 + struct.unpack_from("<Q", data, at)[0]
        if end > len(data):
            return
        record, at = data[at:end], end
        try:
            event = Event.FromString(record[12:-4])
        except DecodeError:
            continue
        yield record, event
