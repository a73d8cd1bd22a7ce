"""The server around the curriculum: sessions, the address, the ZeroMQ loop, and a process of its own to run them in.

dispatch (from request to reply, without IO) → endpoint (where it listens) → loop (socket, signals, clock) → launch.
Imports plr_server.curriculum and plr_client; imported by the command line and by `plr_server`.
"""
