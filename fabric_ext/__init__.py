"""The compiled core of `fabric`: leaves that need no event loop, and the connection above them."""
