"""Parts of `fabric.client`."""
