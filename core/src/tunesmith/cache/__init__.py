"""The cache of encoded values: tensors by key, in files or in memory."""
