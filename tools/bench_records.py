#!/usr/bin/env python
"""Opening, sharing, shuffling and reading a .rec of many small records: time and memory, records/s beside pread.

Example: python tools/bench_records.py --out records.md      (10 million records; needs 0.8 GB in the temporary folder)
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import struct
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
from benchmark import in_turns, rounded, table
from benchmark import report as write_report

from facetrain.data.recordio import RecordFile
from facetrain.data.sampler import batch_indices

PAYLOAD = 12
"""Bytes of each record's image; reading costs the same per record whatever they are."""
_BLOCK = 1_000_000


def main() -> None:
    """Write the file, open it twice, share it, read at random, shuffle, report."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--records", type=int, default=10_000_000)
    options.add_argument("--workers", type=int, default=4, help="processes that share the index")
    options.add_argument("--shuffled", type=int, default=100_000_000, help="images whose order is made")
    options.add_argument("--batch-size", type=int, default=512, help="of that order")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--out", type=Path, help="write the report there too; a bare name goes to docs/benchmarks/")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.rec"
        write(path, chosen.records)
        os.sync()  # or the index would wait until the disk has taken the records
        rows = []
        for name in ("first opening", "opening again"):
            seconds, cpu, own, shared = opened(path)
            rows.append([name, rounded(seconds), rounded(cpu), rounded(own / 2**20), rounded(shared / 2**20)])
        text = table(["", "s", "CPU s", "MB of the process's own, peak", "MB of files shared by all processes"], rows)
        text += "\n\n" + sharing(path, chosen.workers)
        text += "\n\n" + reading(path, chosen.rounds)
    text += "\n\n" + shuffling(chosen.shuffled, chosen.batch_size)
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


def opened(path: Path) -> tuple[float, float, int, int]:
    """(seconds, processor seconds, peak bytes of its own, bytes of mapped files) of a process that opens the file."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_open, args=(path, there))
    process.start()
    answer: tuple[float, float, int, int] = here.recv()
    process.join()
    return answer


def _open(path: Path, answer: multiprocessing.connection.Connection) -> None:
    before = _memory("status")["RssAnon"]
    high, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            high[0] = max(high[0], _memory("status")["RssAnon"])

    watcher = threading.Thread(target=watch)
    watcher.start()
    started, cpu = time.perf_counter(), time.process_time()
    file = RecordFile(path)
    total = int(np.asarray(file.labels).max())
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    done.set()
    watcher.join()
    assert total == (len(file) - 1) // 100
    cached = sum(entry.stat().st_size for entry in path.parent.glob("*.npy"))
    answer.send((seconds, cpu, high[0] - before, cached))


def _memory(file: str) -> dict[str, int]:
    """Fields of /proc/self/status or smaps_rollup in bytes."""
    lines = (line.split() for line in Path("/proc/self", file).read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if words[-1] == "kB"}


def sharing(path: Path, workers: int) -> str:
    """What forked workers add in memory by looking at all labels and many records through one index."""
    file = RecordFile(path)
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    processes = [context.Process(target=_work, args=(file, seed, answers)) for seed in range(workers)]
    for process in processes:
        process.start()
    added = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    index = file.labels.nbytes + len(file) * 8
    rows = [["the index", rounded(index / 2**20)], ["largest addition of a worker", rounded(max(added) / 2**20)]]
    return table([f"{workers} forked workers, all labels and 50,000 records each", "MB"], rows)


def _work(file: RecordFile, seed: int, answers: multiprocessing.Queue[int]) -> None:
    gc.collect()  # which writes to every object that was the parent's, and so copies them
    before = _memory("smaps_rollup")
    assert int(np.asarray(file.labels).sum()) > 0
    for i in np.random.default_rng(seed).integers(0, len(file), 50_000).tolist():
        file.encoded(i)
    after = _memory("smaps_rollup")
    answers.put(after["Private_Dirty"] - before["Private_Dirty"])


def shuffling(count: int, batch_size: int) -> str:
    """The keyed order, made place by place, beside a permutation that is made and kept."""
    per_epoch = count // batch_size

    def ours() -> None:
        for step in range(0, 200 * 7, 7):
            batch_indices(count, batch_size, 0, step % per_epoch)

    ours()
    cpu = time.process_time()
    ours()
    each = (time.process_time() - cpu) / 200
    rows = [["keyed, place by place", "0", rounded(each * 1e3, 3), rounded(_peak(ours) / 2**20, 3)]]
    cpu = time.process_time()
    order = np.random.default_rng(0).permutation(count)
    made = time.process_time() - cpu
    rows.append(["numpy's permutation, kept", rounded(made, 3), "0", rounded(order.nbytes / 2**20)])
    return table([f"order of {count:,} images, batches of {batch_size}", "CPU s an epoch", "ms a batch", "MB"], rows)


def _peak(function: Callable[[], None]) -> int:
    """Bytes that were allocated at once, at most."""
    tracemalloc.start()
    function()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


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

    timings = in_turns({"facetrain": ours, "os.pread": plain}, rounds)
    os.close(handle)
    rows = [[name, *timing.cpu.inverse(len(chosen)).cells(3)] for name, timing in timings.items()]
    return table(["random order, page cache", "records/s per core", "range"], rows)


if __name__ == "__main__":
    main()
