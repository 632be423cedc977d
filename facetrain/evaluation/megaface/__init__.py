"""MegaFace challenge 1, without its devkit."""
