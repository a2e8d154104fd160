"""``python -m service.cli``."""

from service.cli.main import run

run()
