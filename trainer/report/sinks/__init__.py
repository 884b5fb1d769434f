"""Where metrics go: a file for each place; the table of them is SINKS in trainer/report/log.py."""
