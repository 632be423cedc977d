import pytest
from ranks import run_ranks

from facetrain.agreement import agree_on, claimed
from facetrain.config import Config
from facetrain.data.images import encode_jpeg
from facetrain.data.record_writer import RecordWriter
from facetrain.data.recordio import RecordFile
from facetrain.distributed import World
from facetrain.errors import InputError
from facetrain.preflight import Inputs


def _records(path, labels):
    import numpy as np

    image = encode_jpeg(np.zeros((8, 8, 3), np.uint8))
    with RecordWriter(path, 8) as writer:
        for label in labels:
            writer.write(label, image)
    return path


def _config(**keys):
    return Config.model_validate({"output": "unused", "data": {"path": "unused"}} | keys)


def _outcome(world, settings, paths):
    inputs = Inputs(RecordFile(paths[world.rank]), [], [])
    try:
        agree_on(_config(**settings[world.rank]), inputs, world)
    except InputError as error:
        return str(error)
    return "agreed"


@pytest.mark.parametrize(
    ("settings", "labels", "message"),
    [
        ({}, [0, 0, 1], "agreed"),
        ({"seed": 5}, [0, 0, 1], "seed is 0 for rank 0 on HOST, but 5 for rank 1 on HOST"),
        ({"optim": {"lr": 0.02}}, [0, 0, 1], "optim.lr is 0.1 for rank 0 on HOST, but 0.02 for rank 1"),
        ({}, [0, 0, 1, 1], "number of images is 3 for rank 0 on HOST, but 4 for rank 1"),
        ({}, [0, 1, 1], "order of the labels (checksum) is "),
    ],
)
def test_a_difference_between_ranks_is_named_on_all_of_them(tmp_path, settings, labels, message):
    import socket

    paths = [_records(tmp_path / "a" / "train.rec", [0, 0, 1]), _records(tmp_path / "b" / "train.rec", labels)]
    found = run_ranks(2, _outcome, [{}, settings], paths)
    assert found[0] == found[1]
    assert found[0].startswith(message.replace("HOST", socket.gethostname()))


def test_one_rank_agrees_with_itself(tmp_path):
    agree_on(_config(), Inputs(RecordFile(_records(tmp_path / "train.rec", [0, 1])), [], []), World())


def test_a_folder_has_one_run_at_a_time(tmp_path):
    with claimed(tmp_path / "run", World()):
        with pytest.raises(InputError, match="another run is writing to"), claimed(tmp_path / "run", World()):
            pass
        with claimed(tmp_path / "other", World()):
            pass
    with claimed(tmp_path / "run", World()):
        pass


def _claim_own_folder(world, folder):
    try:
        with claimed(folder / str(world.rank), world):
            return "claimed"
    except InputError as error:
        return str(error)


def test_a_folder_that_not_all_ranks_see_is_refused_on_all(tmp_path):
    """Each rank's path stands for a disk of its own; rank 1's is never made."""
    found = run_ranks(2, _claim_own_folder, tmp_path)
    assert all("is not on a file system that all machines share" in problem for problem in found)
