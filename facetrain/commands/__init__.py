"""The subcommands of ``facetrain``; :mod:`facetrain.cli` puts them together."""
