"""`folio verify`: is a receipt genuine, and does its answer come out again?"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError

from service.cli.answers import started
from service.cli.context import LOCAL_OWNER, DeviceName, Dtype, JsonFlag, ModelName, settings_of
from service.cli.output import emit_json
from service.errors import Exit, InvalidRequest
from service.fields import refusal

if TYPE_CHECKING:
    from service.receipts.receipt import Receipt
    from service.receipts.verifying import Verdict
    from service.settings import Settings


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command("verify")(verify)


def verify(
    context: typer.Context,
    receipt: Annotated[Path, typer.Argument(help="A file that folio ask --receipt wrote.", metavar="RECEIPT")],
    model: ModelName = None,
    dtype: Dtype = None,
    device: DeviceName = None,
    as_json: JsonFlag = False,
) -> None:
    """Make the answer of a receipt again and say in one line what differs.

    Exit codes: 0 equal, 3 equal but documents have changed since, 1 otherwise.
    """
    settings = settings_of(context, model=model, dtype=dtype, device=device)
    verdict = asyncio.run(_verdict(settings, read_receipt(receipt)))
    emit_json(asdict(verdict)) if as_json else typer.echo(verdict.says)
    if not verdict.ok:
        raise typer.Exit(Exit.FAILED)
    if not verdict.current:
        raise typer.Exit(Exit.PARTIAL)


def read_receipt(path: Path) -> Receipt:
    """Raises InvalidRequest: it cannot be read, or is no receipt of this version."""
    from service.receipts.receipt import Receipt

    try:
        return Receipt.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        why = refusal(error, lambda place: ".".join(map(str, place)) or "the file").message
        raise InvalidRequest(
            f"{path} is no receipt that this version reads: {why}", hint="folio ask --receipt writes them."
        ) from error


async def _verdict(settings: Settings, receipt: Receipt) -> Verdict:
    from service.receipts.verifying import Verifier

    runtime = await started(settings)
    try:
        return await Verifier(runtime.library, runtime.answerer, runtime.receipts, LOCAL_OWNER).verify(receipt)
    finally:
        await runtime.stop()
