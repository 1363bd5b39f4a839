"""Who is connected, their commands that are under way, and who waits for what.

Reached through a narrow interface: announce a connector, send it a command, wait for its answer.
Nothing here knows what carries the messages: a `Link` does.
"""

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager, suppress

from tunnelsync import protocol
from tunnelsync.backoff import restarting
from tunnelsync.errors import (
    ConnectorBusy,
    ConnectorOffline,
    ConnectorReplaced,
    ConnectorUnknown,
    Internal,
    ProtocolError,
    RouterBusy,
    TransferGone,
    TunnelSyncError,
)
from tunnelsync.identity import Grant, Mac
from tunnelsync.router.session import WAITING, Link, Session
from tunnelsync.router.transfer import Transfer
from tunnelsync.router.transfers import Transfers
from tunnelsync.settings import RouterSettings
from tunnelsync.transfer import EACH

log = logging.getLogger("tunnelsync.router")


@contextmanager
def ending(transfer: Transfer) -> Iterator[None]:
    """End a transfer with whatever error leaves the block."""
    try:
        yield
    except TunnelSyncError as error:
        error.request_id = transfer.request_id
        transfer.end_with(error)
        raise
    except asyncio.CancelledError:
        transfer.end_with(TransferGone("the client left, or cancelled"))
        raise
    except ConnectionError:
        transfer.end_with(TransferGone("the client's connection broke"))
        raise
    except BaseException as exc:
        transfer.end_with(Internal(f"{type(exc).__name__} in the router"))
        raise


class Switchboard:
    """The connectors of one router, in memory; ``expected`` are those with a token."""

    def __init__(
        self,
        settings: RouterSettings,
        transfers: Transfers,
        expected: Callable[[], Set[Mac]] = frozenset,
    ) -> None:
        self._expected = expected
        self.transfers = transfers
        self.sessions: dict[Mac, Session] = {}
        self._settings = settings
        self._known: OrderedDict[Mac, int] = OrderedDict()
        self._loop = asyncio.get_running_loop()

    # --- connectors come and go -------------------------------------------------------------

    def check_room(self, mac: Mac) -> None:
        """Raise `RouterBusy` if one more connector is too many."""
        if mac not in self.sessions and len(self.sessions) >= self._settings.connectors:
            raise RouterBusy(f"{len(self.sessions)} connectors are connected")

    def announce(
        self, mac: Mac, hello: protocol.Hello, link: Link, token: str | None
    ) -> Session | None:
        """Take in a connector that said hello; None if it was refused as a clash.

        The same process is given again what it did not acknowledge. Another process with the
        same MAC takes over, unless it yields: the transfers of the first end at once.
        """
        old = self.sessions.get(mac)
        if old is not None and old.hello.instance == hello.instance:
            return self._welcome_back(old, link, token)
        if old is not None and hello.yields:  # also to one that may return within its grace
            log.debug("refused a connector from %s, which yields to another %s", link.address, mac)
            link.close(protocol.CLOSE_CLASH, f"another connector is connected as {mac}")
            return None
        if old is not None and old.link is not None and self._is_clash(old):
            what = "refused a connector from %s: one from %s stays connected as %s"
            log.warning(what, link.address, old.link.address, mac)
            link.close(protocol.CLOSE_CLASH, f"another connector is connected as {mac}")
            return None
        if old is not None:
            self._replace(old, link)
        session = Session(mac, hello, self._loop.time())
        session.swaps = old.swaps if old is not None else []
        self.sessions[mac] = session
        self._welcome(session, link, token)
        return session

    def _welcome_back(self, session: Session, link: Link, token: str | None) -> Session:
        if session.grace is not None:
            session.grace.cancel()
        if session.link is not None:
            session.link.close(protocol.CLOSE_REPLACED, "the same connector connected again")
        self._welcome(session, link, token)
        session.forget_answered()
        for request_id, command in list(session.unacked.items()):
            try:
                link.send(command)
            except TunnelSyncError as error:  # too long, which nobody saw before there was a link
                del session.unacked[request_id]
                session.transfers.pop(request_id).deadline.fail(error)
        return session

    def _welcome(self, session: Session, link: Link, token: str | None) -> None:
        """Take a link for the one of a session, which begins an epoch."""
        session.link, session.token = link, token
        session.epoch = self._known.pop(session.mac, session.epoch) + 1
        self._known[session.mac] = session.epoch
        while len(self._known) > self._settings.connectors:
            self._known.popitem(last=False)
        what = "connector %s is here, from %s (version %s, epoch %d)"
        log.info(what, session.mac, link.address, session.hello.version[:32], session.epoch)
        batch_bytes = self._settings.batch_bytes
        link.send(protocol.Welcome(session.epoch, batch_bytes=batch_bytes, yields=True))

    def _is_clash(self, session: Session) -> bool:
        """Count a swap of one live connector by another; True if there were too many lately."""
        now, window = self._loop.time(), self._settings.clash_window_seconds
        session.swaps = [then for then in session.swaps if now - then < window]
        if len(session.swaps) >= self._settings.clash_swaps:
            return True
        session.swaps.append(now)
        return False

    def _replace(self, old: Session, by: Link) -> None:
        if old.link is not None:
            what = "connector %s, from %s, is replaced by another process, from %s"
            log.warning(what, old.mac, old.link.address, by.address)
            old.link.close(protocol.CLOSE_REPLACED, f"another connector took over as {old.mac}")
            error: TunnelSyncError = ConnectorReplaced(
                f"another process connected as {old.mac} while it worked"
            )
        else:
            error = ConnectorOffline(f"connector {old.mac} was restarted while it worked")
        self._drop(old)
        for transfer in list(old.transfers.values()):
            transfer.deadline.fail(error)

    def _drop(self, session: Session) -> None:
        """Forget a session; its epoch stays known."""
        if session.grace is not None:
            session.grace.cancel()
        session.link = None
        if self.sessions.get(session.mac) is session:
            del self.sessions[session.mac]

    def lost(self, session: Session, link: Link, *, silent: bool) -> None:
        """A link has ended; ``silent`` says that the connector stopped answering.

        After silence it is offline at once, otherwise after a grace in which it may return.
        """
        if session.link is not link:
            return
        session.link = None
        if silent or self._settings.return_grace_seconds <= 0:
            self._offline(session)
        else:
            log.warning("connector %s lost its connection", session.mac, extra={"kind": EACH})
            session.grace = self._loop.call_later(
                self._settings.return_grace_seconds, self._offline, session
            )

    def _offline(self, session: Session) -> None:
        log.warning("connector %s is offline", session.mac, extra={"kind": EACH})
        self._drop(session)
        for transfer in list(session.transfers.values()):
            if transfer.state in WAITING:
                transfer.deadline.fail(ConnectorOffline(f"connector {session.mac} went offline"))

    def offline(self) -> Set[Mac]:
        """Return those that are not here now, of all with a token; without tokens, that were."""
        return (self._expected() or self._known.keys()) - self.sessions.keys()

    def revoke(self, valid: Mapping[str, Grant]) -> None:
        """Close the links of connectors whose token, by its hash, is not theirs any more."""
        for session in list(self.sessions.values()):
            grant = None if session.token is None else valid.get(session.token)
            theirs = grant is not None and grant.mac == session.mac
            if session.token is not None and not theirs and session.link:
                log.warning("connector %s: its token was revoked", session.mac)
                session.link.close(protocol.CLOSE_REVOKED, "the token was revoked")
                self._offline(session)
        for mac in self._known.keys() - self._expected():
            del self._known[mac]  # it is not waited for any more

    def close(self) -> None:
        """Tell every connector that the router stops, and when to come back."""
        good_bye = restarting(len(self.sessions), self._settings.returns_per_second)
        for session in list(self.sessions.values()):
            if session.link is not None:
                session.link.close(protocol.CLOSE_RESTART, good_bye)
            self._drop(session)

    # --- what a connector says --------------------------------------------------------------

    def heard(self, session: Session, message: protocol.Ack | protocol.Progress) -> None:
        """An acknowledgement or a sign of life; one for a transfer it has not is ignored."""
        transfer = session.transfers.get(message.request_id)
        if isinstance(message, protocol.Ack):
            session.unacked.pop(message.request_id, None)
            if transfer is not None:
                transfer.on_ack()
        elif transfer is not None:
            transfer.on_progress(message)

    def not_understood(self, session: Session, fault: protocol.Fault) -> None:
        """A message of ours was no use to the connector; a command among them has failed."""
        shown = protocol.printable(fault.message[:500])
        log.warning("connector %s did not take a message: %s", session.mac, shown)
        transfer = session.transfers.get(fault.request_id or "")
        if transfer is None or transfer.state not in WAITING:
            return
        error: TunnelSyncError = ProtocolError(
            f"connector {session.mac} did not understand the command: {shown}"
        )
        if fault.code == ConnectorBusy.code:
            error = ConnectorBusy(f"connector {session.mac} took no more commands: {shown}")
        transfer.deadline.fail(error)

    # --- what a client wants ----------------------------------------------------------------

    @contextmanager
    def ask(
        self,
        mac: Mac,
        dataset: str,
        mode: str,
        command: Callable[[str], protocol.Command],
        whom: str = "",
    ) -> Iterator[Transfer]:
        """Send a command, made from a fresh request id, and yield its transfer, ``whom`` it is for.

        Whatever error leaves the block ends the transfer. Raises `ConnectorUnknown`,
        `ConnectorOffline` or `RouterBusy` before anything is sent.
        """
        session = self._session(mac)
        made = command(secrets.token_hex(16))
        transfer = Transfer(made, mac, dataset, mode, self._settings, self._ended)
        transfer.whom = whom
        self._dispatch(session, transfer)
        with ending(transfer):
            yield transfer

    def _session(self, mac: Mac) -> Session:
        if (session := self.sessions.get(mac)) is not None:
            return session
        if mac in self._known or mac in self._expected():
            raise ConnectorOffline(f"connector {mac} is offline")
        raise ConnectorUnknown(f"no connector {mac} has connected to this router")

    def _dispatch(self, session: Session, transfer: Transfer) -> None:
        if len(session.unacked) >= self._settings.command_queue:
            session.forget_answered()
        if len(session.unacked) >= self._settings.command_queue:
            raise RouterBusy(f"{len(session.unacked)} commands wait for connector {session.mac}")
        self.transfers.add(transfer, len(session.transfers))
        with ending(transfer):
            if session.link is not None:
                session.link.send(transfer.command)
        session.unacked[transfer.request_id] = transfer.command
        session.transfers[transfer.request_id] = transfer

    def _ended(self, transfer: Transfer) -> None:
        """Book a transfer that has ended, and tell its connector if it does not know."""
        self.transfers.retire(transfer)
        session = self.sessions.get(transfer.mac)
        if session is None or session.transfers.pop(transfer.request_id, None) is None:
            return
        session.unacked.pop(transfer.request_id, None)
        if session.link is not None and not transfer.connector_knows:
            with suppress(RouterBusy):  # then it learns by 410 when it posts
                session.link.send(protocol.Cancel(transfer.request_id))
