"""Routing as data: the reference codes, the routers, and the settings of a run."""
