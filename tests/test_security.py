"""What no file, list or address from outside may do: run code, lead elsewhere, half replace a file, be listened to."""

from __future__ import annotations

import ast
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import facetrain
from facetrain.atomic import check_folder, check_result_file, result_file
from facetrain.config import ModelConfig
from facetrain.data.dataset import listed_images
from facetrain.data.files import look_up, read_file
from facetrain.errors import InputError

ROOT = Path(facetrain.__file__).parents[1]
SOURCES = sorted(path for room in ("facetrain", "tools", "eval", "docker") for path in (ROOT / room).rglob("*.py"))
LIBRARY = [path for path in SOURCES if path.is_relative_to(ROOT / "facetrain")]

# Calls that run what a file says, or that a file's name can lead astray.
FORBIDDEN = {
    *("eval", "exec", "compile", "__import__", "input", "breakpoint", "builtins.eval", "builtins.exec"),
    *(
        "pickle.load",
        "pickle.loads",
        "pickle.Unpickler",
        "dill.load",
        "dill.loads",
        "cloudpickle.load",
        "cloudpickle.loads",
    ),
    *("joblib.load", "marshal.load", "marshal.loads", "shelve.open", "runpy.run_path", "code.interact"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.unsafe_load_all"),
    *("torch.hub.load", "torch.jit.load", "torch.package.PackageImporter", "torch.ops.load_library"),
    *("torch.utils.cpp_extension.load", "torch.distributed.checkpoint.load", "dist_cp.load"),
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "commands.getoutput"),
    *("tempfile.mktemp", "os.tempnam", "os.tmpnam", "hydra.utils.instantiate", "hydra.utils.call", "instantiate"),
    *(
        "xml.etree.ElementTree.parse",
        "ElementTree.parse",
        "ET.parse",
        "urllib.request.urlopen",
        "urlopen",
        "requests.get",
    ),
}
METHODS = {"extractall", "extract", "unsafe_load", "load_module", "exec_module"}  # of whatever object
LISTENING = {"listen", "bind", "serve_forever", "create_server", "start_server"}
SERVERS = {"socketserver", "http.server", "xmlrpc", "asyncio", "flask", "fastapi", "uvicorn", "gradio", "tornado"}
PICKLE = {
    "facetrain/evaluation/unpickle.py",
    "facetrain/data/pairs_file.py",
}  # opcodes, and the unpickler that calls nothing


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """(dotted name, call) of every call in a file, aliases of imports written out."""
    tree = ast.parse(path.read_text(), str(path))
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            first, _, rest = ast.unparse(node.func).partition(".")
            yield ".".join(filter(None, (names.get(first, first), rest))), node


def offences(path: Path) -> list[str]:
    """Lines of a file that could run what somebody's file says."""
    found = []
    for name, call in calls(path):
        given = {word.arg: ast.unparse(word.value) for word in call.keywords}
        method = name.rsplit(".", 1)[-1] if "." in name else ""
        wrong = name in FORBIDDEN or (method in METHODS and "filter" not in given)
        wrong |= name == "torch.load" and given.get("weights_only") != "True"
        wrong |= given.get("shell", "False") != "False"
        wrong |= name in ("numpy.load", "np.load") and given.get("allow_pickle", "False") != "False"
        wrong |= name == "jinja2.Environment" and given.get("autoescape") != "True"
        if wrong:
            found.append(f"{path}:{call.lineno}: {name}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_from_outside_is_executed(path):
    assert offences(path) == []


@pytest.mark.parametrize(
    "line",
    [
        "from pickle import loads as read; read(b'')",
        "import pickle as p; p.load(file)",
        "import torch; torch.load(path)",
        "import torch; torch.load(path, weights_only=False)",
        "import numpy as np; np.load(path, allow_pickle=True)",
        "import yaml; yaml.load(text, Loader=yaml.SafeLoader)",
        "import subprocess; subprocess.run(text, shell=True)",
        "import tarfile; tarfile.open(path).extractall(out)",
        "import tempfile; tempfile.mktemp()",
        "from hydra.utils import instantiate; instantiate(config)",
        "eval(text)",
    ],
)
def test_the_rule_finds_what_it_is_for(tmp_path, line):
    (tmp_path / "x.py").write_text(line + "\n")
    assert len(offences(tmp_path / "x.py")) == 1


def test_only_the_restricted_unpickler_knows_pickle_and_nobody_serves():
    for path in LIBRARY:
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for module in modules:
                assert module.split(".")[0] not in {"pickle", "pickletools", "dill", "cloudpickle"} or (
                    str(path.relative_to(ROOT)) in PICKLE
                ), f"{path}:{node.lineno}: {module}"
                assert not {module, module.split(".")[0]} & SERVERS, f"{path}:{node.lineno}: {module}"


def test_no_recipe_names_what_to_make():
    for path in (*(ROOT / "configs").rglob("*.yaml"), *(ROOT / "configs").rglob("*.yml"), *LIBRARY):
        assert "_target_" not in path.read_text(), path


def opens_a_port(path: Path) -> list[str]:
    return [name for name, call in calls(path) if name.rsplit(".", 1)[-1] in LISTENING and "." in name]


def test_no_module_opens_a_port():
    assert {str(path): found for path in LIBRARY if (found := opens_a_port(path))} == {}


def listening() -> set[str]:
    """Local addresses of the sockets on which this process listens, as the kernel writes them."""
    own = {
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.lexists(f"/proc/self/fd/{fd}")
    }
    found = set()
    for kind in ("tcp", "tcp6"):
        table = Path(f"/proc/net/{kind}")
        for line in table.read_text().splitlines()[1:] if table.exists() else []:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in own:
                found.add(words[1])
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/net")
def test_a_run_of_one_process_listens_nowhere(tmp_path, monkeypatch):
    import socket

    from facetrain import run
    from facetrain.data.images import encode_jpeg
    from facetrain.recipe import load

    before = listening()  # whatever other tests have left open
    with socket.create_server(("127.0.0.1", 0)):
        assert len(listening() - before) == 1  # it would be seen
    image = encode_jpeg(np.zeros((16, 16, 3), np.uint8))
    for person in "abcd":
        (tmp_path / "photos" / person).mkdir(parents=True)
        (tmp_path / "photos" / person / "1.jpg").write_bytes(image)
    (tmp_path / "r.yaml").write_text(
        f"output: {tmp_path}/run\ndevice: cpu\ndata: {{path: {tmp_path}/photos, workers: 0}}\n"
        "model: {width: 4, input_size: 16, embedding_size: 8}\ntrain: {batch_size: 4, epochs: 1}\n"
    )
    seen: list[set[str]] = []
    step = run.train_step
    monkeypatch.setattr(run, "train_step", lambda *words: seen.append(listening() - before) or step(*words))
    assert run.train(load(tmp_path / "r.yaml")) == 0
    assert seen == [set()]


def test_documents_show_tensorboard_and_stores_to_this_machine_alone():
    """TensorBoard listens on localhost unless told otherwise, and so it must stay in what people copy."""
    for path in (*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", *(ROOT / "docker").glob("*")):
        text = path.read_text(errors="replace") if path.is_file() else ""
        for line in text.splitlines():
            if "tensorboard" in line.lower():
                assert "--bind_all" not in line, path
                assert "0.0.0.0" not in line, path
    for path in (ROOT / "docker").glob("Dockerfile*"):
        assert "EXPOSE 6006" not in path.read_text(), path


# ---- files from lists


def test_only_regular_files_are_read(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("a")
    os.mkfifo(tmp_path / "pipe")
    assert read_file(tmp_path / "a") == read_file(tmp_path / "link") == b"abc"
    for path in ("/dev/zero", "/dev/null", tmp_path / "pipe", tmp_path):
        with pytest.raises(OSError, match=r"regular file|Is a directory"):
            read_file(path)


def test_links_that_lead_out_of_a_folder_are_found(tmp_path):
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    for path in (folder / "a", folder / "deep" / "b", tmp_path / "out" / "c"):
        path.write_bytes(b"")
    (folder / "inside").symlink_to("deep/b")
    (folder / "outside").symlink_to("../out/c")
    (folder / "deep2").symlink_to("../out")
    (folder / "deep3").symlink_to("deep")
    (folder / "broken").symlink_to("nowhere")
    names = ["a", "deep/b", "inside", "outside", "deep2/c", "deep3/b", "gone", "deep/gone", "broken"]
    assert look_up(folder, names) == ([6, 7], [3, 4])
    (tmp_path / "alias").symlink_to("in")  # the folder itself may be a link
    assert look_up(tmp_path / "alias", names) == ([6, 7], [3, 4])


def test_a_users_own_list_may_say_absolute_paths_but_not_climb(tmp_path):
    (tmp_path / "l.txt").write_text("/data/a.jpg\nb/c.jpg\n..d/e..jpg\n")
    assert len(listed_images(tmp_path / "l.txt")) == 3
    for line in ("../a.jpg", "a/../../b.jpg 3", "a/..", "..", "/data/../a.jpg"):
        (tmp_path / "l.txt").write_text(f"a.jpg{' 1' * line.endswith('3')}\n{line}\n")
        with pytest.raises(InputError, match=r"l.txt:2: .* leads out of the list's folder; write the absolute path"):
            listed_images(tmp_path / "l.txt")


# ---- files that are written


def test_where_nothing_can_be_written_is_known_before(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "x.json").mkdir()
    check_folder(tmp_path / "new" / "er")
    check_result_file(tmp_path / "y.json", ".json")
    check_result_file(None, ".json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "x.json"]
    for folder, says in [
        (tmp_path / "file", "output: .*file is a file; expected a folder, or none yet"),
        (tmp_path / "file" / "a" / "b", "output: .*file is a file; expected a folder, or none yet"),
        (Path("/proc/nobody"), "output: /proc/nobody cannot be written to: .*; choose another place"),
        (tmp_path / ("x" * 300), "cannot be written to: File name too long; choose another place"),
    ]:
        with pytest.raises(InputError, match=says):
            check_folder(folder, "output")
    for path, says in [
        (tmp_path / "x.json", "x.json is a folder; expected the name of a .json file to write"),
        (tmp_path / "gone" / "x.json", "must be a .json file in a folder that exists"),
        (tmp_path / "x.txt", "must be a .json file in a folder that exists"),
    ]:
        with pytest.raises(InputError, match=says):
            check_result_file(path, ".json")


def killed_in_the_middle(work: Callable[[], object], patched: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run ``work`` in a fork that is killed where it first calls ``patched``."""
    child = os.fork()
    if child == 0:
        try:
            monkeypatch.setattr(patched, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            work()
        except BaseException:
            traceback.print_exc()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


def _half(path: Path) -> None:
    with result_file(path) as growing, growing.open("wb") as file:
        file.write(b"half")
        file.flush()
        os.getpgid(0)  # where the test kills it
        file.write(b"the rest")


def _result(path: Path) -> None:
    from made_up_runs import made_up_ijbc

    from facetrain.evaluation.result import save_results

    save_results([made_up_ijbc()], path)


def _table(path: Path) -> None:
    from facetrain.evaluation.comparison import compare

    _result(path.with_name("source.json"))
    compare([str(path.with_name("source.json"))], table=path)


def _safetensors(path: Path) -> None:
    from facetrain.checkpoints.backbones import write_backbone
    from facetrain.export import export
    from facetrain.models import build_backbone

    model = ModelConfig(width=4, input_size=16, embedding_size=8)
    source = path.with_name("source.safetensors")
    if not source.exists():
        write_backbone(source, build_backbone(model), model)
    export(source, path)


@pytest.mark.parametrize("where", ["os.fsync", "os.replace"])
@pytest.mark.parametrize(
    ("write", "name"),
    [(_half, "x.bin"), (_result, "x.json"), (_table, "x.md"), (_safetensors, "x.safetensors")],
    ids=["file", "result", "table", "export"],
)
def test_a_kill_in_the_middle_leaves_the_older_file(tmp_path, monkeypatch, write, name, where):
    out = tmp_path / name
    write(out)
    good = out.read_bytes()
    os.utime(out, (0, 0))
    if write is _table:  # its source is written too, so only its own file may be killed
        write = _only_table
    killed_in_the_middle(lambda: write(out), where, monkeypatch)
    assert out.read_bytes() == good
    assert out.stat().st_mtime == 0
    write(out)
    assert out.stat().st_mtime > 0


def _only_table(path: Path) -> None:
    from facetrain.evaluation.comparison import compare

    compare([str(path.with_name("source.json"))], table=path)


def test_a_kill_between_two_writes_leaves_the_older_file(tmp_path, monkeypatch):
    _half(tmp_path / "x")
    killed_in_the_middle(lambda: _half(tmp_path / "x"), "os.getpgid", monkeypatch)
    assert (tmp_path / "x").read_bytes() == b"halfthe rest"


# Where a file is written by other means, and why that is safe.
WRITERS = {
    "facetrain/checkpoints/backbones.py": "a backbone to a name that its caller made with result_file",
    "facetrain/checkpoints/convert.py": "to a name made with result_file",
    "facetrain/checkpoints/storage.py": "into a checkpoint's hidden folder, which is renamed when it is whole",
    "facetrain/checkpoints/writer.py": "into a checkpoint's hidden folder, which is renamed when it is whole",
    "facetrain/data/record_writer.py": "temporary files, renamed together",
    "facetrain/evaluation/embedding_cache.py": "a lock; rows are found by their checksum",
    "facetrain/evaluation/inline_svg.py": "into memory",
    "facetrain/evaluation/npz.py": "into an archive whose name was made with result_file",
    "facetrain/launch.py": "a worker's last word, in the launcher's temporary folder",
    "facetrain/monitor.py": "a log that grows by lines",
    "facetrain/watch/watchdog.py": "the stacks of a rank that hangs, whose process is about to be killed",
}


def writes(path: Path) -> Iterator[int]:
    """Lines that write a file outside of a ``with replacing(...)`` or ``with result_file(...)``."""
    tree = ast.parse(path.read_text(), str(path))
    above = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func).rsplit(".", 1)[-1]
        texts = [
            word.value for word in (*node.args, *(k.value for k in node.keywords)) if isinstance(word, ast.Constant)
        ]
        mode = next((text for text in texts if isinstance(text, str) and len(text) <= 3), "")
        opened = name == "open" and set(mode) & set("wax")
        if name not in ("write_text", "write_bytes", "savefig", "save_file", "tofile", "savez") and not opened:
            continue
        while (node := above.get(node)) is not None:
            if isinstance(node, ast.With) and any(
                ast.unparse(item.context_expr).partition("(")[0].rsplit(".", 1)[-1] in ("replacing", "result_file")
                for item in node.items
            ):
                break
        else:
            yield 1


def test_results_are_written_whole_or_not_at_all():
    others = {str(path.relative_to(ROOT)) for path in LIBRARY if any(writes(path))}
    assert others <= set(WRITERS), "write it within atomic.result_file, or say here why not"
