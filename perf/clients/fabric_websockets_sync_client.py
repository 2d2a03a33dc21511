"""Peer: `fabric.websockets.sync`, the program that is written for `websockets`, with another import."""

import gauge

from fabric.websockets.sync.client import connect

options = gauge.arguments()

with connect(options.url, ssl=options.context, proxy=None) as connection:
    gauge.measure_blocking(options, connection.send, connection.recv, lambda message: message)
