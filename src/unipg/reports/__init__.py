"""What a person looks at afterwards: the report of one run or of several side by side, and the statistics behind its intervals.

Belongs here: reading run folders, charts and their captions, the page, intervals and smoothing. Does not belong here: measuring during
training (`training/`), evaluation itself (`rollouts/`), comparison of estimators (`lab/`).
"""
