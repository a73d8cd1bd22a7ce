"""Durable state: what is written of a curriculum server, so that it can be killed at any instant.

values (plain data as bytes) and records (the journal's format, and what a broken end of it means) are pure;
files, journal (one segment that grows), snapshot (one state), owner (whose the folder is) and state_dir (the folder:
order, recovery) are the IO around them. Imports plr_client's errors alone; knows neither sessions nor curricula: a
command is bytes, a state a plain value. Used by plr_server.serving and the command line.
"""
