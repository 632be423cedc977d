"""IJB-B and IJB-C: from the official lists to 1:1 and 1:N tables."""
