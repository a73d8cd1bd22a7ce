"""Scoring: from what a trainer pushed to the score of every episode in it. Used by the state machine."""
