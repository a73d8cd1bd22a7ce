"""The live page: shows what a running server does, in a process of its own, as one more client.

measures (what the rows of a level table say) and rules (the verdict in words) are pure; history is the past, in a
bounded ring; functions are the user's, of which groups and pictures make something; watched puts these together for
one curriculum, and collect for all of a server, which it polls; web shows it to browsers, with the files in static/,
and to Prometheus, by metrics; top shows it in a terminal, and watch prints the stats again and again.
Imported by the command line alone. Never part of the server's loop: it sends reads, seldom, and changes nothing.
"""
