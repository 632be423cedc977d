#!/usr/bin/env python
"""Opening and reading a .rec of many small records: time, memory, records/s beside a plain pread.

Example: python tools/bench_records.py --records 42000000 --out records.md      (needs 3 GB in the temporary folder)
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import struct
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from benchmark import in_turns, rounded, table
from benchmark import report as write_report

from facetrain.data.recordio import RecordFile

PAYLOAD = 12
"""Bytes of each record's image; reading costs the same per record whatever they are."""
_BLOCK = 1_000_000


def main() -> None:
    """Write the file, open it twice, read at random, report."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--records", type=int, default=1_000_000)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--out", type=Path, help="write the report there too; a bare name goes to docs/benchmarks/")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.rec"
        write(path, chosen.records)
        rows = []
        for name in ("first opening", "opening again"):
            seconds, own, shared = opened(path)
            rows.append([name, rounded(seconds), rounded(own / 2**20), rounded(shared / 2**20)])
        text = table(["", "s", "MB of the process's own, peak", "MB of files shared by all processes"], rows)
        text += "\n\n" + reading(path, chosen.rounds)
    write_report(f"Records: {chosen.records:,} of {PAYLOAD} bytes", text, chosen.out)


def write(path: Path, records: int) -> None:
    """An im2rec-style .rec and .idx, a million records at a time; 100 images a person."""
    length = 24 + PAYLOAD
    record = np.dtype([("magic", "<u4"), ("length", "<u4"), ("flag", "<u4"), ("label", "<f4"), ("id", "<u8", 2)])
    assert record.itemsize == 8 + 24
    size = 8 + length + -length % 4
    with path.open("wb") as rec, path.with_suffix(".idx").open("w") as idx:
        for start in range(0, records, _BLOCK):
            keys = np.arange(start, min(start + _BLOCK, records))
            block = np.zeros((len(keys), size), np.uint8)
            head = np.zeros(len(keys), record)
            head["magic"], head["length"], head["label"] = 0xCED7230A, length, keys // 100
            head["id"][:, 0] = keys
            block[:, : record.itemsize] = head.view(np.uint8).reshape(len(keys), -1)
            block[:, record.itemsize : 8 + length] = 7
            rec.write(block.tobytes())
            idx.write("".join(f"{key}\t{key * size}\n" for key in keys.tolist()))


def opened(path: Path) -> tuple[float, int, int]:
    """(seconds, peak bytes of its own, bytes of mapped files) of a process that opens the file and reads all labels."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_open, args=(path, there))
    process.start()
    answer: tuple[float, int, int] = here.recv()
    process.join()
    return answer


def _open(path: Path, answer: multiprocessing.connection.Connection) -> None:
    before = _memory()["RssAnon"]
    high, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            high[0] = max(high[0], _memory()["RssAnon"])

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    file = RecordFile(path)
    total = int(np.asarray(file.labels).max())
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    assert total == (len(file) - 1) // 100
    cached = sum(entry.stat().st_size for entry in path.parent.glob("*.npy"))
    answer.send((seconds, high[0] - before, cached))


def _memory() -> dict[str, int]:
    """Fields of /proc/self/status in bytes."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[-1] == "kB"}


def reading(path: Path, rounds: int) -> str:
    """Records/s in random order: ours, and os.pread at offsets that are known."""
    file = RecordFile(path)
    chosen = np.random.default_rng(0).integers(0, len(file), 200_000).tolist()
    offsets = [file.byte_offset(i) for i in chosen]
    handle = os.open(path, os.O_RDONLY)
    header = struct.Struct("<II")

    def ours() -> None:
        for i in chosen:
            file.encoded(i)

    def plain() -> None:
        for offset in offsets:
            _, length = header.unpack(os.pread(handle, 8, offset))
            os.pread(handle, length, offset + 8)

    timings = in_turns({"facetrain, no copy": ours, "os.pread": plain}, rounds)
    os.close(handle)
    rows = [[name, *timing.cpu.inverse(len(chosen)).cells(3)] for name, timing in timings.items()]
    return table(["random order, page cache", "records/s per core", "range"], rows)


if __name__ == "__main__":
    main()
