"""Sampling: from scores and staleness to the level that is played next. Used by the state machine."""
