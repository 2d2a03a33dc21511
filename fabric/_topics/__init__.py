"""Parts of `fabric.topics`."""
