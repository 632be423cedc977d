"""Damaged checkpoints: whatever the damage, it is refused with the file's name and the previous one is taken.

Reliability goal 5. DCP by itself loads a flipped bit without a word.
"""

import random
import shutil

import pytest
import small_checkpoints
from scale import scale, seed
from small_checkpoints import found

from facetrain.checkpoints.files import listed, newest_good, set_aside_newer, verify
from facetrain.errors import InputError


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """Checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("intact")
    small_checkpoints.write(folder, 1, 2)
    return folder


def _flip(draw, file, _):
    content = bytearray(file.read_bytes())
    content[draw.randrange(len(content))] ^= draw.randrange(1, 256)
    file.write_bytes(content)
    return file.name


def _cut(draw, file, _):
    content = file.read_bytes()
    file.write_bytes(content[: draw.randrange(len(content))])
    return file.name


def _lengthen(draw, file, _):
    file.write_bytes(file.read_bytes() + draw.randbytes(draw.randrange(1, 9)))
    return file.name


def _remove(draw, file, _):
    file.unlink()
    return file.name


def _swap_within(draw, file, _):
    other = draw.choice([path for path in sorted(file.parent.iterdir()) if path != file])
    one, two = file.read_bytes(), other.read_bytes()
    file.write_bytes(two)
    other.write_bytes(one)
    return "manifest.json" if "manifest.json" in (file.name, other.name) else ""


def _take_from_the_other(draw, file, other):
    shutil.copy(other / file.name, file)
    return file.name if file.suffix == ".safetensors" else ""


def _random_bytes(draw, file, _):
    file.write_bytes(draw.randbytes(file.stat().st_size))
    return file.name


def _overwrite_a_page(draw, file, _):
    content = file.read_bytes()
    start = draw.randrange(len(content))
    zeros = bytes(len(content[start : start + 512]))
    assert content[start : start + 512] != zeros
    file.write_bytes(content[:start] + zeros + content[start + 512 :])
    return file.name


DAMAGES = [_flip, _cut, _lengthen, _remove, _swap_within, _take_from_the_other, _random_bytes, _overwrite_a_page]


def test_damage_of_any_kind_is_refused_by_name_and_the_previous_checkpoint_is_taken(intact, tmp_path):
    cases = scale(quick=200, ci=1000, release=10_000)
    draw = random.Random(seed())
    fallen_back = 0
    for case in range(cases):
        damage = DAMAGES[case % len(DAMAGES)]
        folder = tmp_path / "checkpoints"
        shutil.copytree(intact, folder)
        newest = folder / "step_00000002"
        file = draw.choice(sorted(newest.iterdir()))
        name = damage(draw, file, folder / "step_00000001")
        there = newest in listed(folder)  # without a manifest it is no checkpoint
        if there:
            with pytest.raises(InputError) as caught:
                verify(newest)
            assert name in str(caught.value), (case, damage.__name__)
            assert "\n" not in str(caught.value)
        else:
            assert damage is _remove, (case, damage.__name__)
        good, problems = newest_good(folder)
        assert good == folder / "step_00000001", (case, damage.__name__)
        assert len(problems) == there
        assert found(folder) == 1
        set_aside_newer(good)
        assert listed(folder) == [good]
        fallen_back += 1
        shutil.rmtree(folder)
    print(f"{fallen_back} of {cases} damaged checkpoints were refused, the previous one was read")
    assert fallen_back == cases


def test_every_single_bit_of_the_manifest_counts(intact, tmp_path):
    """It vouches for the rest, so nothing in it may change unseen, its own checksum included."""
    path = shutil.copytree(intact / "step_00000002", tmp_path / "step_00000002")
    file = path / "manifest.json"
    content = file.read_bytes()
    for at in range(len(content)):
        changed = bytearray(content)
        changed[at] ^= 1 << at % 8
        file.write_bytes(changed)
        with pytest.raises(InputError):
            verify(path)
    file.write_bytes(content)
    verify(path)


def test_two_checkpoints_that_were_damaged_one_after_the_other_are_both_set_aside(intact, tmp_path):
    folder = shutil.copytree(intact, tmp_path / "checkpoints")
    for _ in range(2):
        shutil.rmtree(folder / "step_00000002", ignore_errors=True)
        shutil.copytree(intact / "step_00000002", folder / "step_00000002")
        set_aside_newer(folder / "step_00000001")
    assert len(list(folder.glob("damaged_step_00000002*"))) == 2
    assert listed(folder) == [folder / "step_00000001"]
