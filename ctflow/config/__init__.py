"""Typed configuration: dataclass schemas and the one way commands read them."""

from ctflow.config.cli import CommandLine, Flag, parse_command, run_command
from ctflow.config.loading import config_to_yaml, load_config

__all__ = ["CommandLine", "Flag", "config_to_yaml", "load_config", "parse_command", "run_command"]
