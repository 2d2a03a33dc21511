"""`fabric.sync`, everything on by default."""

import gauge

import fabric.sync

options = gauge.arguments()

with fabric.sync.connect(options.url, ssl=options.context, busy_poll=options.busy_poll) as client:
    gauge.measure_blocking(options, client.send, client.recv, lambda message: message.as_bytes())
