"""The mathematics of a Switch Transformer; runs on one CPU without a process group."""
