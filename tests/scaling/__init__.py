"""How far one queue goes: its verbs measured on a real server, and many workers simulated on them.

`python -m tests.scaling` makes the figures and pictures of docs/scaling.md again.
"""
