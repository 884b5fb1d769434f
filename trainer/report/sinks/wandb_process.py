"""The process that talks to Weights & Biases: it follows `metrics.jsonl` and logs every row.

Being another process, it can neither hold up a run nor print into its terminal, and what it has not got through is in
`metrics.jsonl`, from where a successor reads it again. The first line of its standard input is its `Order`; a second
one, or the end of the pipe, says that the run is over. It ends with 0 when every row is on the server or in files that
`wandb sync` uploads.
"""

from __future__ import annotations

import json
import logging
import math
import netrc
import os
import signal
import socket
import sys
import threading
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import ParseResult, urlparse
from urllib.request import getproxies

from conf.safety.redact import redact_text
from conf.safety.streams import redact_streams
from trainer.report.panels import load_panels
from trainer.report.sinks.wandb_pieces import Mode, Piece, Pieces, new_id, read_pieces, write_pieces

if TYPE_CHECKING:
    from wandb import Run

INIT_S = 30.0  # for the server to answer when a run is opened
FINISH_S = 15.0  # for the server to take what is left when it is closed
_REACH_S = 3.0
_POLL_S = 0.5
_NICENESS = 5
# Terminals and schedulers send these to every process of a job; the trainer decides what they mean.
_PARENTS_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What to record. All of it is plain, since it travels as JSON."""

    pieces: str  # path of pieces.json
    metrics: str
    offset: int  # bytes of `metrics` that earlier processes recorded
    mode: Literal["auto", "online", "offline"]
    project: str
    entity: str | None
    name: str  # of the run folder
    folder: str  # below which W&B makes its own `wandb/`
    config: dict[str, Any]
    trainer: int  # process whose use of the machine W&B records
    again: bool = False  # the newest piece was cut off, and this one records its rows once more
    note: str | None = None  # why it is offline after all


class _Over:
    """Set when the run is over, with its exit code: by a line of the pipe, its end, or another parent."""

    def __init__(self) -> None:
        self.event, self.exit_code = threading.Event(), 1
        self._parent = os.getppid()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        if line := sys.stdin.readline():
            self.exit_code = int(line)
        self.event.set()

    def __bool__(self) -> bool:
        return self.event.is_set() or os.getppid() != self._parent


def serve() -> None:
    """Record what the order on standard input says, then end this process."""
    for number in _PARENTS_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    os.nice(_NICENESS)
    redact_streams()
    logging.setLogRecordFactory(_without_secrets)  # W&B's debug.log has its settings and what a server answers
    order = Order(**json.loads(sys.stdin.readline()))
    if order.mode != "online":
        os.environ["WANDB_ERROR_REPORTING"] = "false"  # telemetry, which W&B sends offline as well
    code = 0
    try:
        _record(order, _Over())
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    os._exit(code)  # W&B's own exit hooks would wait for a server that is gone, or complain about it


def _without_secrets(*args: Any, **kwargs: Any) -> logging.LogRecord:
    record = logging.LogRecord(*args, **kwargs)
    record.msg, record.args = redact_text(record.getMessage()), ()
    if record.exc_info:
        record.exc_text = redact_text("".join(traceback.format_exception(*record.exc_info)))
    return record


def _record(order: Order, over: _Over) -> None:
    path = Path(order.pieces)
    run, pieces, skip = _open(order, path)
    _follow(run, Path(order.metrics), order.offset, over, skip=skip)
    write_pieces(path, pieces.ended("kept"))  # true from now on, should this process be ended before the server has it
    with suppress(TimeoutError):
        run.finish(exit_code=over.exit_code)
        if pieces.pieces[-1].mode == "online":
            write_pieces(path, pieces.ended("sent"))


class _Opened(NamedTuple):
    run: Run
    pieces: Pieces
    skip: int = 0  # rows from the order's offset on that the server has already


def _open(order: Order, path: Path) -> _Opened:
    """Open a W&B run and note it; offline where the server cannot be had."""
    pieces = read_pieces(path) or Pieces(id=os.environ.get("WANDB_RUN_ID") or new_id())
    write_pieces(path, pieces)  # the id is the folder's from now on, whatever becomes of this process
    Path(order.folder).mkdir(parents=True, exist_ok=True)  # where there is none, W&B would use /tmp
    note = order.note
    # Without a key `auto` means offline, and there is nothing to explain.
    if order.mode == "online" or (order.mode == "auto" and _has_key(_server().hostname or "")):
        note = _obstacle()
        if note is None:
            try:
                return _continued(order, path, pieces) or _begun(order, path, pieces, "online", note=None)
            except Exception as error:
                traceback.print_exc()
                note = redact_text(f"{type(error).__name__}: {error}".splitlines()[0])
    return _begun(order, path, pieces, "offline", note=note)


def _continued(order: Order, path: Path, pieces: Pieces) -> _Opened | None:
    """The W&B run that was online before, where its rows on the server end; None if there is none such."""
    name = pieces.id_to_continue(again=order.again)
    if name is None:
        return None
    run = _init(order, pieces, name, "online")
    first = pieces.pieces[-1].first_line if order.again else run.starting_step
    if not run.starting_step or run.starting_step < first:
        run.finish()  # the server knows no rows of it: ours would be written over what it has
        return None
    if order.again:
        pieces = pieces.ended("sent")
    return _noted(path, pieces, run, name, "online", first_line=first, skip=run.starting_step - first)


def _begun(order: Order, path: Path, pieces: Pieces, mode: Mode, *, note: str | None) -> _Opened:
    """A new W&B run; what was cut off, and is recorded in it once more, is set aside."""
    if order.again:
        _set_aside(Path(pieces.pieces[-1].folder))
        pieces = pieces.ended("replaced")
    name = pieces.fresh_id()
    return _noted(path, pieces, _init(order, pieces, name, mode), name, mode, note=note)


def _noted(
    path: Path,
    pieces: Pieces,
    run: Run,
    name: str,
    mode: Mode,
    *,
    first_line: int = 0,
    skip: int = 0,
    note: str | None = None,
) -> _Opened:
    folder, url = str(Path(run.dir).parent), run.url if mode == "online" else None
    piece = Piece(id=name, mode=mode, folder=folder, ending="open", url=url, first_line=first_line)
    pieces = pieces.with_piece(piece, note=note)
    write_pieces(path, pieces)
    return _Opened(run, pieces, skip)


def _init(order: Order, pieces: Pieces, name: str, mode: Mode) -> Run:
    import wandb

    number = len({piece.id for piece in pieces.pieces} | {name})
    run = wandb.init(
        project=order.project,
        entity=order.entity,
        group=os.environ.get("WANDB_RUN_GROUP") or f"{order.name}-{pieces.id}",
        name=os.environ.get("WANDB_NAME") or (order.name if number == 1 else f"{order.name} ({number})"),
        id=name,
        resume="allow",
        dir=order.folder,
        config=order.config,
        mode=mode,
        settings=wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,
            init_timeout=INIT_S,
            finish_timeout=FINISH_S,
            finish_timeout_raises=True,
            x_stats_pid=order.trainer,
        ),
    )
    # Steps are ours: a resumed run starts below the last one logged, which W&B's own counter refuses.
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run


def _set_aside(folder: Path) -> None:
    """Rename what was cut off, so that `wandb sync .../offline-run-*` leaves it out."""
    with suppress(OSError):
        folder.rename(folder.with_name(f"replaced-{folder.name}"))


def _server() -> ParseResult:
    import wandb

    return urlparse(wandb.setup().settings.base_url)


def _obstacle() -> str | None:
    """Why there is no use in trying to connect; None where there is."""
    url = _server()
    host, port = url.hostname or "", url.port or (80 if url.scheme == "http" else 443)
    if not _has_key(host):
        return f"no key for {host}: set WANDB_API_KEY or run `wandb login`"
    if getproxies().get(url.scheme):
        return None  # whether the proxy reaches it is seen when the run is opened
    try:
        with socket.create_connection((host, port), timeout=_REACH_S):
            return None
    except OSError as error:
        return f"{host}:{port} cannot be reached: {error}"


def _has_key(host: str) -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _follow(run: Run, metrics: Path, offset: int, over: _Over, *, skip: int) -> None:
    """Log every line of `metrics` from `offset` on but the first `skip`, until the run is over and all are read."""
    unfinished = b""
    with metrics.open("rb") as file:
        file.seek(offset)
        while True:
            last = bool(over)  # asked before reading: what was written before the end is read
            *lines, unfinished = (unfinished + file.read()).split(b"\n")
            for line in lines[skip:]:
                _log(run, json.loads(line))
            skip = max(skip - len(lines), 0)
            if last:
                return
            over.event.wait(_POLL_S)


def _log(run: Run, row: dict[str, Any]) -> None:
    """One row; what is a list for each expert becomes one image for each stack."""
    import wandb

    numbers = {name: math.nan if value is None else value for name, value in row.items() if not isinstance(value, list)}
    images = {name: wandb.Image(image) for name, image in load_panels(row, row["step"]).items()}
    run.log({**numbers, **images})
