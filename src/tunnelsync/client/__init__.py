"""The client: asks a router for datasets, and gets them whole and verified.

``api`` is what others use; each mode has a file of its own that yields the same `Incoming`, so
that ``download`` knows nothing of modes.
"""

from tunnelsync.client.api import ConnectorEntry, Fetched, TunnelSync

__all__ = ["ConnectorEntry", "Fetched", "TunnelSync"]
