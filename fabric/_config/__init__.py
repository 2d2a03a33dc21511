"""How configs are declared and checked, and the configs themselves; `fabric.config` is the public module."""
