"""What `fabric.rpc` is made of."""
