"""Made-up runs and results of several models, for the tests of what puts them side by side."""

from __future__ import annotations

import json

import numpy as np
from made_up_results import made_up_result

from facetrain.checkpoints.files import manifest_text
from facetrain.evaluation.report import save_verification
from facetrain.evaluation.result import Curve, Result, score_histogram, thinned
from facetrain.evaluation.scores import roc, tpr_at_fpr


def made_up_run(folder, seed=0, *, margin=0.5, model="", sets=("lfw",), leap=False):
    """A run's folder with a log, a recipe, results on ``sets`` and, where ``model`` is given, a checkpoint of it."""
    folder.mkdir(parents=True)
    lines = [{"kind": "train", "step": s, "loss": 9 / s + seed, "lr": 0.1, "seconds": 1.0 * s} for s in range(1, 41)]
    lines += [
        {"kind": "verification", "step": s, "set": name, **made_up_result(seed).record()}
        for s in (20, 40)
        for name in sets
    ]
    if leap:
        counts = np.bincount(np.arange(300) % 60, minlength=180).tolist()
        lines += [{"kind": "angles", "step": 40, "epoch": 1, "head": counts, "tail": counts}]
        lines += [
            {"kind": "leap", "step": s, "sigma_head": 0.2, "sigma_tail": 0.1, "sigma_overall": 0.15} for s in (20, 40)
        ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.yaml").write_text(
        f"output: {folder}\nmargin:\n  kind: arcface\n  m: {margin}\nevaluate:\n  sets:\n  - lfw.bin\n"
    )
    for name in sets:
        save_verification(folder, name, made_up_result(seed))
    if model:
        checkpoint = folder / "checkpoints" / "step_00000040"
        checkpoint.mkdir(parents=True)
        manifest = {"format": 2, "step": 40, "num_classes": 2, "num_images": 2, "config": {}, "ranks": 1}
        (checkpoint / "manifest.json").write_text(
            manifest_text(manifest | {"fingerprint": model, "rows": {}, "files": {}})
        )
    return folder


def made_up_ijbc(model="ab" * 32, name="face.onnx", *, seed=0, flip=True, unreadable=0):
    """A 1:1 result with intervals; 4 of its 5 rates are decided by 10 impostor scores and more."""
    rng = np.random.default_rng(seed)
    same = np.arange(31_000) < 1_000
    scores = rng.normal(4 * same, 1)
    fprs = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
    cells = tuple(tpr_at_fpr(scores, same, fprs))
    points = roc(scores, same)
    return Result(
        protocol="ijb-1:1",
        dataset="IJB-C",
        model=model,
        model_name=name,
        switches={"flip": flip, "FPR rule": "strict"},
        cells=cells,
        intervals={"TPR@1e-3": (max(0.0, cells[2].tpr - 0.01), min(1.0, cells[2].tpr + 0.01))},
        curves={"roc": thinned(points.fpr, points.tpr)},
        histogram=score_histogram(scores[same], scores[~same]),
        images=469_375,
        unreadable=unreadable,
        seconds=12.5,
    )


def made_up_megaface(model="ab" * 32, name="face.onnx", *, distractors=1_000_000, rate=0.8141):
    """A search result with a CMC and no cells."""
    return Result(
        protocol="megaface",
        dataset=f"MegaFace, {distractors:,} distractors",
        model=model,
        model_name=name,
        switches={"cleaned": True},
        metrics={"rank-1": rate, "rank-10": 0.9},
        intervals={"rank-1": (rate - 0.02, rate + 0.02)},
        curves={"cmc": Curve((1, 10, 100), (rate, 0.9, 0.95))},
        images=3530 + distractors,
    )
