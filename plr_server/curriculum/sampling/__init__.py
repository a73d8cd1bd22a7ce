"""Sampling: from scores and staleness to the level that is played next. Used by the curriculum.

sampler is the whole: transforms (P_S; order keeps levels by rank) and staleness (P_C) draw, eviction finds the level
that leaves a full table; trees is what their trees share. unseen keeps the levels that may be handed out as new.
"""
