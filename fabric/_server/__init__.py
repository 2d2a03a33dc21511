"""Parts of `fabric.server`."""
