"""Peer: `websockets`, its client for threads."""

import gauge
from websockets.sync.client import connect

options = gauge.arguments()

with connect(options.url, ssl=options.context, proxy=None) as connection:
    gauge.measure_blocking(options, connection.send, connection.recv, lambda message: message)
