"""The drawing of synthetic faces; :mod:`facetrain.data.synthetic` is the way in."""
