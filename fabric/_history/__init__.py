"""Histories of topics: the window of one topic's latest messages, and the windows of a server."""
