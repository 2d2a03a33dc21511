"""The opening handshake of both sides: from a TCP connection to an open WebSocket."""
