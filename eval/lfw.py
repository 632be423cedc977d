"""The LFW protocol on insightface's .bin files: ``python eval/lfw.py CHECKPOINT BIN...``, as ``facetrain eval lfw``."""

import sys

from facetrain.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", "lfw", *sys.argv[1:]]))
