"""The threading interface of `websockets`, which is not here yet: names that packages import, and that say so."""
