"""The server around the curriculum: sessions, the address, the ZeroMQ loop, and a process of its own to run them in.

sessions (who is who) → dispatch (from request to reply); endpoint (where it listens), wire (the socket, its bounds) →
loop (signals, clock) → launch. Sessions and dispatch have no IO and no clock.
Imports plr_server.curriculum and plr_client; imported by the command line and by `plr_server`.
"""
