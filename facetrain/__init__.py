"""facetrain: face-recognition training with a sharded classifier, for long-tailed identity sets."""

__version__ = "0.1.0"
