"""The live page: shows what a running server does, in a process of its own, as one more client.

measures (what the arrays of a curriculum say) and rules (the verdict in words) are pure; history is the past, in a
bounded ring; collect polls a server and puts the three together; web shows it to browsers, with the files in static/,
and to Prometheus, by metrics; top shows it in a terminal, and watch prints the stats again and again.
Imported by the command line alone. Never part of the server's loop: it sends reads, seldom, and changes nothing.
"""
