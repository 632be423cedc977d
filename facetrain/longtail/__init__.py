"""Stage 3: embeddings and labels -> statistics of every class -> feature clouds for those with few images (LEAP)."""
