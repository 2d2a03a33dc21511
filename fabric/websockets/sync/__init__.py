"""The threading interface: `client`, `server`, `router`, and what their connections have in common."""
