"""Parts of `fabric.sync`."""
