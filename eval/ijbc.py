"""IJB-C: ``python eval/ijbc.py MODEL ROOT`` on the folder with meta/ and loose_crop/, as ``facetrain eval ijbc``."""

import sys

from facetrain.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", "ijbc", *sys.argv[1:]]))
