"""``python -m facetrain``: the same as the command ``facetrain``."""

from facetrain.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
