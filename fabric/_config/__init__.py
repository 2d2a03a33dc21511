"""How the fields of the configurations are checked."""
