"""Data sets for the tests of records and of the commands that make and check them."""

import cv2
import numpy as np

from facetrain.data.record_format import MAGIC_BYTES, frame
from facetrain.data.recordio import RecordFile, RecordWriter
from facetrain.errors import InputError


def write(path, classes, **options):
    """``classes``: a list of lists of (encoded, more labels)."""
    with RecordWriter(path, 112, **options) as writer:
        for label, images in enumerate(classes):
            for encoded, more in images:
                writer.write(label, encoded, more)
    return path


def small(path, **options):
    return write(
        path, [[(b"first", ()), (MAGIC_BYTES * 2 + b"tail", ())], [(b"", (7.0,))], [(b"last one", ())]], **options
    )


def read_all(file):
    return [bytes(file.image_bytes(i)) for i in range(len(file))]


def attempt(path):
    """The images, or the message of the refusal; any other exception is a failure."""
    try:
        return read_all(RecordFile(path)), ""
    except InputError as error:
        return [], str(error)


def write_labels(path, labels, encoded=b"x", more=(), **options):
    with RecordWriter(path, **options) as writer:
        for label in labels:
            writer.write(label, encoded, more)


def interrupt(path, **options):
    with RecordWriter(path, **options) as writer:
        writer.write(0, b"x")
        raise KeyboardInterrupt


def raw(path, records, numbers=None):
    """A .rec of the given payloads, framed by hand, with its .idx."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data, lines = b"", []
    for position, payload in enumerate(records):
        lines.append(f"{position if numbers is None else numbers[position]}\t{len(data)}\n")
        data += frame(payload)
    path.write_bytes(data)
    path.with_suffix(".idx").write_text("".join(lines))
    return path


def folder_of_people(root, people=8, photos=4, shape=(20, 16)):
    """Person k's photo j is flat with level 20 * k + 3 * j, so that it can be told from its pixels."""
    for k in range(people):
        (root / f"p{k}").mkdir(parents=True)
        for j in range(photos):
            cv2.imwrite(str(root / f"p{k}" / f"{j}.png"), np.full((*shape, 3), 20 * k + 3 * j, np.uint8))
    return root
