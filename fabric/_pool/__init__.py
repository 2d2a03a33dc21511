"""The connections of a pool to one server."""
