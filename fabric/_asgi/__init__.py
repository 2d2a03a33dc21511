"""The parts of `fabric.asgi`: what passes between HTTP and ASGI, and the worker for gunicorn."""
