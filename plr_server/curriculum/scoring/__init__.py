"""Scoring: from what a trainer pushed to the score of every episode in it. Used by the state machine.

rollouts (the door) → episodes (what was played, advantages) → strategies (the rules), history (what they remember of
levels), functions (rules of the user's) → scorer, the whole. pools (steps that wait to be a block), under_way (what
episodes have earned before their end), stitching (episodes that wait for their end, with all their steps), columns (how
long anything waits) and groups (agents of one env) are its parts.
"""
