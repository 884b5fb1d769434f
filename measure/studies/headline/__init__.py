"""The study of speed-up: Switch against its FLOP-matched dense twin."""
