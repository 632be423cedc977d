"""Finding ranks that hang, are gone or slow, and ending the job with the reason."""
