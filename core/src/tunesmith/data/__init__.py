"""From files on disk to batches: geometry, images, captions, datasets, order, cache and loading."""
