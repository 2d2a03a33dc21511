"""The command line: `fabric demo | connect | serve | bench | run`; `python -m fabric` is the same.

One module each: the commands `demo`, `connect`, `serve`, `bench` and `run`; what they share, `arguments`, `screen`,
`lines`, `units`, `chart` and `load`; and `main`, which runs one of them and settles the exit code.
Nothing of `fabric` imports this package.
"""
