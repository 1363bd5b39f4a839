"""The client: asks a router for datasets, and gets them whole and verified.

``api`` is what others use; each mode is a `Way` in a file of its own, so that ``download`` knows
nothing of modes.
"""

from tunnelsync.client.api import ConnectorEntry, TunnelSync
from tunnelsync.client.folder import FolderFetched, fetch_folder
from tunnelsync.client.part import Resume
from tunnelsync.client.record import Fetched, FetchReceipt, Record

__all__ = [
    "ConnectorEntry",
    "FetchReceipt",
    "Fetched",
    "FolderFetched",
    "Record",
    "Resume",
    "TunnelSync",
    "fetch_folder",
]
