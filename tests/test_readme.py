"""What README.md says about files is true."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_every_module_has_its_line():
    modules = [path.relative_to(ROOT / "facetrain") for path in (ROOT / "facetrain").rglob("*.py")]
    named = [path for path in modules if not path.name.startswith("__") and path.parent.name != "faces"]
    assert len(named) > 40
    for path in named:
        assert re.search(rf"^  {re.escape(str(path))} ", README, re.MULTILINE), path


def test_every_file_it_names_exists():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    commands = re.findall(r"(?:configs|tools|eval|docker|docs)/[\w./]+\w", README)
    assert links
    assert commands
    for name in (*links, *commands):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"^  (\S+\.py) ", README, re.MULTILINE):
        assert (ROOT / "facetrain" / name).exists(), name
