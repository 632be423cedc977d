import pytest

from facetrain.atomic import replacing


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
