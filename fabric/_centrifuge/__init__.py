"""Parts of `fabric.centrifuge`: the words of the protocol, its topics, and the session of one client."""
