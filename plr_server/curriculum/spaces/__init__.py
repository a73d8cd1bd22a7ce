"""Level spaces: which levels there are, and the way between a level's id and its place in the table.

level_space has the closed ones (a range, a list), open_space those that keep the best of many (seeds, payloads).
"""
