"""Parts of `fabric.workers`: the parent that keeps the workers, and what runs in each of them."""
