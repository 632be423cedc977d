"""Protocols that turn embeddings into published numbers. Nothing here imports training."""
