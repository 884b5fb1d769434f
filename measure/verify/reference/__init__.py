"""The one process that every layout is compared with, and the files that it leaves."""
