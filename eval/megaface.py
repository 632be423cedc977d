"""MegaFace challenge 1: ``python eval/megaface.py MODEL DATA``, as ``facetrain eval megaface``."""

import sys

from facetrain.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", "megaface", *sys.argv[1:]]))
