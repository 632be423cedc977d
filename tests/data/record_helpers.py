"""Data sets for the tests of records and of the commands that make and check them."""

import cv2
import numpy as np

from facetrain.data.encoded import Encoded
from facetrain.data.images import encode_jpeg
from facetrain.data.record_format import MAGIC_BYTES, frame, image_payload
from facetrain.data.record_writer import RecordWriter
from facetrain.data.recordio import RecordFile
from facetrain.errors import InputError


def write(path, classes, **options):
    """Our writer's files; ``classes``: a list of lists of encoded images."""
    with RecordWriter(path, 112, **options) as writer:
        for label, images in enumerate(classes):
            for encoded in images:
                writer.write(label, encoded)
    return path


def lay_out(path, classes, identities=True):
    """The files of other tools, which may have vector labels; ``classes``: a list of lists of (encoded, more labels).

    With ``identities`` in insightface's layout, else in im2rec's.
    """
    records, ranges = [b""] * identities, []
    for label, images in enumerate(classes):
        start = len(records)
        for encoded, more in images:
            records.append(image_payload([float(label), *more] if more else float(label), len(records), encoded))
        ranges.append([float(start), float(len(records))])
    if identities:
        first = len(records)
        records += [image_payload(pair, first + n) for n, pair in enumerate(ranges)]
        records[0] = image_payload([float(first), float(len(records))], 0)
    raw(path, records)
    path.with_name("property").write_text(f"{len(classes)},112,112\n")
    return path


def small(path, identities=True):
    classes = [[(b"first", ()), (MAGIC_BYTES * 2 + b"tail", ())], [(b"", (7.0,))], [(b"last one", ())]]
    return lay_out(path, classes, identities)


def read_all(file):
    return [bytes(file.encoded(i)) for i in range(len(file))]


def attempt(path):
    """The images, or the message of the refusal; any other exception is a failure."""
    try:
        return read_all(RecordFile(path)), ""
    except InputError as error:
        return [], str(error)


def write_labels(path, labels):
    with RecordWriter(path) as writer:
        for label in labels:
            writer.write(label, b"x")


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


class InMemory(Encoded):
    """Images of random blocks; ``broken`` ones are cut short."""

    def __init__(self, n=50, classes=7, side=16, broken=()):
        rng = np.random.default_rng(0)
        self.labels = np.arange(n, dtype=np.int64) % classes
        self.num_classes = classes
        blocks = rng.integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
        self.jpegs = [encode_jpeg(np.kron(b, np.ones((side // 4, side // 4, 1), np.uint8))) for b in blocks]
        for i in broken:
            self.jpegs[i] = self.jpegs[i][:-20]

    def __len__(self):
        return len(self.jpegs)

    def encoded(self, i):
        return self.jpegs[i]

    def where(self, i):
        return f"memory image {i}"
