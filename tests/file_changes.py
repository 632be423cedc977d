"""What can happen to a .rec while it is read."""

import os


def cut(rec):
    os.truncate(rec, 5000)


def delete(rec):
    rec.unlink()


def delete_index(rec):
    rec.with_suffix(".idx").unlink()


def replace(rec):
    other = rec.with_name("other")
    other.write_bytes(b"something else" * 100)
    other.rename(rec)
