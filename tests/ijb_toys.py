"""A tiny IJB folder made by hand, and insightface's protocol written out slowly, in float64."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import roc_curve

from facetrain.evaluation.ijb.meta import Faces

POINTS_OF_A_FACE = "38.0 51.0 73.0 51.0 56.0 71.0 41.0 92.0 70.0 92.0"


def write_ijb(root, images, pairs, galleries=((), ()), probes=(), stem="ijbc", names=("G1", "G2")):
    """``images``: (name, template, medium, score); ``pairs``: (t1, t2, label); the rest: (template, subject)."""
    meta = root / "meta"
    meta.mkdir(parents=True)
    (meta / f"{stem}_face_tid_mid.txt").write_text("".join(f"{n} {t} {m}\n" for n, t, m, _ in images))
    lines = [f"{n} {POINTS_OF_A_FACE} {score}\n" for n, _, _, score in images]
    (meta / f"{stem}_name_5pts_score.txt").write_text("".join(lines))
    (meta / f"{stem}_template_pair_label.txt").write_text("".join(f"{a} {b} {c}\n" for a, b, c in pairs))
    for rest, rows in zip((*(f"gallery_{n}" for n in names), "probe_mixed"), (*galleries, probes), strict=True):
        text = "TEMPLATE_ID,SUBJECT_ID,FILENAME,SIGHTING_ID\n"
        text += "".join(f"{t},{s},img/{t}_{i}.jpg,7\n" for t, s in rows for i in range(2))
        (meta / f"{stem}_1N_{rest}.csv").write_text(text)
    return root


def random_ijb(root, people=8, seed=0, dim=6, **names):
    """Templates 10, 13, 16, ...: one in a gallery and two probes of each person; also the features (N, dim)."""
    rng = np.random.default_rng(seed)
    images, features, galleries, probes = [], [], ([], []), []
    centres = rng.normal(size=(people, dim))
    template = 10
    for person in range(people):
        for number in range(3):
            (galleries[person % 2] if number == 0 else probes).append((template, 500 + person))
            for _ in range(int(rng.integers(1, 6))):
                name = f"{len(images) + 1}.jpg"
                images.append((name, template, int(rng.integers(1, 4)), round(float(rng.uniform(0.1, 1)), 3)))
                features.append((centres[person] + rng.normal(size=dim)) * rng.uniform(0.5, 3))
            template += 3
    enrolled = [one for gallery in galleries for one in gallery]
    pairs = [(a, b, int(s == t)) for a, s in enrolled for b, t in probes]
    rng.shuffle(pairs)
    write_ijb(root, images, pairs, galleries, probes, **names)
    return np.array(features, np.float32), pairs


def slow_templates(features, faces, *, keep_norm, detector_score, unit_media, fusion):
    """{template: (D,) float64 of length 1}, by dictionaries of lists."""
    found: dict[int, dict[int, list]] = {}
    rows = np.asarray(features, np.float64)
    for i, row in enumerate(rows):
        if not keep_norm:
            row = row / (np.linalg.norm(row) or 1)
        if detector_score:
            row = row * float(faces.detector[i])
        found.setdefault(int(faces.templates[i]), {}).setdefault(int(faces.media[i]), []).append(row)
    pooled = {}
    for template, media in found.items():
        means = [np.sum(frames, axis=0) / len(frames) for frames in media.values()]
        if unit_media:
            means = [mean / (np.linalg.norm(mean) or 1) for mean in means]
        total = np.sum(means, axis=0) / (len(means) if fusion == "mean" else 1)
        pooled[template] = total / (np.linalg.norm(total) or 1)
    return pooled


def nearest_tpr(scores, same, fprs):
    """As eval_ijbc.py picks its points."""
    fpr, tpr, _ = roc_curve(same, scores)
    fpr, tpr = np.flipud(fpr), np.flipud(tpr)
    return [float(tpr[min(zip(abs(fpr - wanted), range(len(fpr)), strict=True))[1]]) for wanted in fprs]


def faces_of(templates, media, detector=None):
    n = len(templates)
    return Faces(
        [f"{i}.jpg" for i in range(n)],
        np.zeros((n, 5, 2), np.float32),
        np.ones(n, np.float32) if detector is None else np.asarray(detector, np.float32),
        np.asarray(templates, np.int64),
        np.asarray(media, np.int64),
    )
