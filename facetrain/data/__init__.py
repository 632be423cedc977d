"""Training data: records and folders, their order, augmentation and loading."""
