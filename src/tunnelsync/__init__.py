"""TunnelSync gets a dataset off a machine that accepts no inbound connection.

A *connector* on that machine keeps one outbound socket to a *router*; a *client* asks the
router for a dataset and gets it whole and verified. See ``tunnelsync.client.TunnelSync``.
"""

__version__ = "0.1.0"
