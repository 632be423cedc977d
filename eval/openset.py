"""The open-set protocol on a labelled set: ``python eval/openset.py MODEL DATA``, as ``facetrain eval openset``."""

import sys

from facetrain.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", "openset", *sys.argv[1:]]))
