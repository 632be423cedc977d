import re

import pytest

from facetrain.atomic import replacing, result_file
from facetrain.errors import InputError


def half(path):
    with replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt


def test_replacing(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(KeyboardInterrupt):
        half(path)
    assert not list(tmp_path.iterdir())
    for text in ("one", "two"):
        with replacing(path) as temporary:
            temporary.write_text(text)
            assert path.exists() == (text == "two")
        assert path.read_text() == text
    with pytest.raises(KeyboardInterrupt):
        half(path)
    assert path.read_text() == "two"
    assert list(tmp_path.iterdir()) == [path]


def test_names_are_unique(tmp_path):
    with replacing(tmp_path / "file") as one, replacing(tmp_path / "file") as two:
        assert one != two
        one.write_text("one")
        two.write_text("two")
    assert (tmp_path / "file").read_text() == "one"


def test_result_file_makes_its_folder_and_names_what_refuses(tmp_path):
    path = tmp_path / "new" / "file"
    with result_file(path) as temporary:
        temporary.write_text("one")
    assert path.read_text() == "one"
    with pytest.raises(InputError, match=f"^{re.escape(str(path))} cannot be written: No space left on device$"):
        _full(path)
    assert path.read_text() == "one"
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(InputError, match=r"file/below cannot be written: "), result_file(path / "below"):
        pytest.fail("a file is no folder")


def _full(path):
    with result_file(path) as temporary:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")
