"""The routers, a file for each that decides in a way of its own, and what they share."""
