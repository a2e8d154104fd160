"""Logging: structlog and the standard library's, one format, on stderr."""

from __future__ import annotations

import logging
import sys

import structlog


def configure_logging(level: str = "warning", json_lines: bool = False) -> None:
    """Send every log line of every package to stderr at `level` and above."""
    number = getattr(logging, level.upper(), logging.WARNING)
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if json_lines
        else structlog.dev.ConsoleRenderer(
            colors=False,
            exception_formatter=structlog.dev.plain_traceback,  # the pretty one prints local variables: documents, keys
        )
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    processors: list[structlog.typing.Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if json_lines:
        processors.append(structlog.processors.format_exc_info)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[*processors, renderer])
    )
    root = logging.getLogger()
    handler.setLevel(number)  # a package that lowers its own logger does not get past it
    root.handlers = [handler]
    root.setLevel(number)
    for chatty in ("httpx", "httpcore", "urllib3", "filelock", "asyncio", "multipart", "python_multipart"):
        logging.getLogger(chatty).setLevel(max(number, logging.WARNING))
