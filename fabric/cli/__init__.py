"""The command line: `fabric demo | connect | serve | bench`; `python -m fabric` is the same.

One module each: the commands `demo`, `connect`, `serve` and `bench`; what they share, `arguments`, `screen`,
`lines`, `units`, `chart` and `load`; and `main`, which runs one of them and settles the exit code.
Nothing of `fabric` imports this package.
"""
