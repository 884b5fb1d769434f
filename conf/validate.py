"""Checks of a configuration before torch is imported."""

from conf.errors import ConfigError


def check_world(cfg, n): ...
def validate(cfg, files="checked"): ...
