"""What a client and a connection of a server have in common."""
