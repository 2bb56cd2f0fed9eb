"""A folder or a file to samples that fit the model."""
