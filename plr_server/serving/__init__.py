"""The server around the curriculum: sessions, the address, the ZeroMQ loop, and a process of its own to run them in.

dispatch (from request to reply), sessions (who is who, what each has been answered), roles (who may what) and turns
(whose request is next) decide, without IO and clock; endpoint (where it listens), wire (the sockets), keys (the folder
of keys) and loop (signals, clock) do what they say; timings counts requests and how long they took; restart brings a
dispatcher to where a state directory ends; launch runs it all in a process.
Imports plr_server.curriculum, plr_server.durability and plr_client; imported by the command line and by `plr_server`.
"""
