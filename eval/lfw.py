"""The LFW protocol on .bin files or LFW's own list: ``python eval/lfw.py MODEL BIN...``, as ``facetrain eval lfw``."""

import sys

from facetrain.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", "lfw", *sys.argv[1:]]))
