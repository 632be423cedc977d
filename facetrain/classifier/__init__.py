"""Stage 2: embeddings of all ranks and their labels -> loss, over classes spread over ranks."""
