"""Entries of lists and meta files that leave their folder, and meta files that are wrong in other ways."""

from __future__ import annotations

import json

from bad_input import PIPE, Case, Content, Link, command

TAIL = "--device cpu --no-cache"
IJB = f"eval ijbc model.safetensors ijb {TAIL}"
MEGA = f"eval megaface model.safetensors mega {TAIL}"
EMBED = "embed model.safetensors list.txt x.npz --device cpu"
META, LISTS = "ijb/meta/ijbc_", "mega/templatelists/"
POINTS = "38 51 73 51 56 71 41 92 70 92 0.9"


def _ijb(name: str, *says: str, **links: str) -> Case:
    """Both lists of IJB-C with one image, called ``name``."""
    files: dict[str, Content] = {
        f"{META}face_tid_mid.txt": f"1.jpg 10 1\n{name} 13 1\n",
        f"{META}name_5pts_score.txt": f"1.jpg {POINTS}\n{name} {POINTS}\n",
        f"{META}template_pair_label.txt": "10 13 1\n13 10 0\n",
    }
    files |= {f"ijb/loose_crop/{link}": Link(to) for link, to in links.items()}
    return command(f"{IJB} --task 1:1 --no-intervals", "ijbc_name_5pts_score.txt:2", *says, files=files)


def _mega(name: str, *says: str, **links: str) -> Case:
    """FaceScrub's list with one image more, called ``name``."""
    paths = ["a/0.jpg", "a/1.jpg", "b/0.jpg", "b/1.jpg", name]
    files: dict[str, Content] = {f"{LISTS}facescrub_features_list.json": json.dumps({"path": paths, "id": [*"aabba"]})}
    files |= {f"mega/facescrub_images/{link}": Link(to) for link, to in links.items()}
    return command(MEGA, *says, files=files)


def _listed(line: str, *says: str, text: bytes | None = None) -> Case:
    """A list of images whose second line is ``line``."""
    content = f"photos/person0/0.jpg\n{line}\n".encode() if text is None else text
    return command(EMBED, "list.txt:2", *says, files={"list.txt": content})


def _pairs(name: str, *says: str) -> Case:
    """LFW's list with a person called ``name``."""
    lines = ["10\t1", *(["person0\t1\t2", "person0\t1\tperson1\t1"] * 10)]
    lines[1] = f"{name}\t1\t2"
    files = {"pairs.txt": "\n".join(lines) + "\n"}
    return command(f"eval lfw model.safetensors --pairs pairs.txt --images photos {TAIL}", *says, files=files)


INSIDE, RELATIVE = "is no file name inside loose_crop/", "expected a relative path without .."

LEAVING = [
    _ijb("../1.jpg", INSIDE),
    _ijb("../../photos/person0/0.jpg", INSIDE),
    _ijb("/etc/passwd", INSIDE),
    _ijb("a/../../x.jpg", INSIDE),
    _ijb("..", INSIDE),
    _ijb("a\0.jpg", INSIDE),
    _ijb("link.jpg", "is a link that leads out of ijb/loose_crop", **{"link.jpg": "../../photos/person0/0.jpg"}),
    _ijb("deep/0.jpg", "is a link that leads out of ijb/loose_crop", deep="../../photos/person0"),
    _ijb("far.jpg", "is a link that leads out of ijb/loose_crop", **{"far.jpg": "/etc/passwd"}),
    _mega("../x.jpg", "facescrub_features_list.json", RELATIVE),
    _mega("a/../../x.jpg", "facescrub_features_list.json", RELATIVE),
    _mega("/etc/passwd", "facescrub_features_list.json", RELATIVE),
    _mega("\\\\host\\x.jpg", "facescrub_features_list.json", RELATIVE),
    _mega("..\\x.jpg", "facescrub_features_list.json", RELATIVE),
    _mega("a\0.jpg", "facescrub_features_list.json", RELATIVE),
    _mega("", "facescrub_features_list.json", RELATIVE),
    _mega("link.jpg", "link.jpg", "leads out of mega/facescrub_images", **{"link.jpg": "../../photos/person0/0.jpg"}),
    _mega("deep/0.jpg", "deep/0.jpg", "leads out of mega/facescrub_images", deep="../../photos/person0"),
    _listed("../elsewhere/0.jpg", "leads out of the list's folder"),
    _listed("photos/../../x.jpg", "leads out of the list's folder"),
    _listed("a\0.jpg", "a NUL character; expected an image path"),
    command(f"{EMBED}", "/dev/zero", "not a regular file", files={"list.txt": "/dev/zero\n"}),
    command(f"{EMBED}", "pipe.jpg", "not a regular file", files={"list.txt": "pipe.jpg\n", "pipe.jpg": PIPE}),
    _pairs("../photos/person0", "pairs.txt:2", "is not a person's name"),
    _pairs("/etc", "pairs.txt:2", "is not a person's name"),
    _pairs("..", "pairs.txt:2", "is not a person's name"),
    _pairs("a\0", "pairs.txt:2", "is not a person's name"),
]


def _meta(name: str, content: Content, *says: str, words: str = IJB) -> Case:
    return command(words, name, *says, files={f"{META}{name}": content})


def _list(name: str, content: Content, *says: str) -> Case:
    return command(MEGA, name, *says, files={f"{LISTS}{name}": content})


PROTOCOLS = [
    command(f"eval ijbc model.safetensors gone {TAIL}", "gone has no folder meta; expected IJB-C"),
    command(f"eval ijbc model.safetensors taken {TAIL}", "taken has no folder meta"),
    command(f"eval ijbb model.safetensors ijb {TAIL}", "ijbb_face_tid_mid.txt", "No such file"),
    _meta("face_tid_mid.txt", "", "it is empty"),
    _meta("face_tid_mid.txt", "1.jpg 10\n", ":1: '1.jpg 10'; expected IMAGE TEMPLATE MEDIUM"),
    _meta("face_tid_mid.txt", b"\xff\xfe 1 1\n", ":1"),
    _meta("face_tid_mid.txt", "1.jpg 10 99999999999999999999\n", ":1"),
    _meta("face_tid_mid.txt", "1.jpg -1 1\n", ":1"),
    _meta("face_tid_mid.txt", Link("/dev/null"), "it is empty"),
    _meta("name_5pts_score.txt", "1.jpg 1 2 3\n", ":1"),
    _meta("name_5pts_score.txt", f"1.jpg {POINTS.replace('38', 'nan')}\n", ":1", "numbers"),
    _meta("name_5pts_score.txt", f"other.jpg {POINTS}\n", "line 1", "take both from one release"),
    _meta("template_pair_label.txt", "1 2 maybe\n", ":1"),
    _meta("template_pair_label.txt", "10 13 2\n", ":1: the label is 2; expected 1 (one subject) or 0 (two)"),
    _meta("template_pair_label.txt", "10 99 1\n", ":1: template 99 has no image"),
    _meta("1N_probe_mixed.csv", "nothing\n", "heading"),
    _meta("1N_gallery_G1.csv", "TEMPLATE_ID,SUBJECT_ID\n10,x\n", ":2"),
    command(f"eval megaface model.safetensors gone {TAIL}", "gone is not a folder; expected one with the devkit's"),
    command(f"eval megaface model.safetensors empty {TAIL}", "empty/facescrub_features_list.json", "cannot be read"),
    _list("facescrub_features_list.json", "{", "expected the devkit's JSON"),
    _list("facescrub_features_list.json", "[]", "not the devkit's JSON"),
    _list("facescrub_features_list.json", '{"path": []}', "the list is empty"),
    _list("facescrub_features_list.json", '{"path": [1]}', 'has no "path" with a list of texts'),
    _list("facescrub_features_list.json", '{"path": ["a/0.jpg"]}', 'has no "id"'),
    _list("facescrub_features_list.json", '{"path": ["a", "a"], "id": ["x", "x"]}', "a is listed twice"),
    _list("facescrub_features_list.json", "[" * 100_000, "expected the devkit's JSON"),
    _list("megaface_features_list.json_10_1", '{"path": ["1/0.jpg"]}', "1 paths where its name says 10"),
    command(MEGA, "mega/facescrub_noises.txt cannot be read", files={"mega/facescrub_noises.txt": b"\xff\xfe"}),
]
