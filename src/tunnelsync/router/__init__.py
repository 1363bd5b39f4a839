"""The router: pairs a client's request with a connector, and passes the bytes on.

``app`` has the routes, ``switchboard`` knows who is connected, ``transfers`` what runs, and
each mode has a file of its own.
"""
