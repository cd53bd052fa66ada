"""Timeouts: how long servers are waited for, in seconds, and how often they are asked."""

from __future__ import annotations

# Requests
SILENCE = 30.0  # without a byte
CANCEL = 4.0  # the same, of a run that is being stopped
PAUSES = (0.5, 1, 2, 4)  # before each further attempt
SLOWEST_UPLOAD = 64 << 10  # bytes per second

# Several servers
OTHERS = 10.0  # for the others, once one has answered that can do the job

# Events
CONNECT = 10.0
HEARTBEAT = 60.0  # between two pings; a server that loads a model may answer late
RECONNECT_PAUSES = (0.5, 1, 2, 5, 15)  # before each further attempt, the last one over and over

# Jobs
POLL = 0.2  # until a cancel is seen
BETWEEN_QUESTIONS = (0.5, 0.5, 1, 1, 2)  # how far a job is, without events; the last one over and over
WITH_EVENTS = 10.0  # the same with events
LOST_AFTER = 120.0  # without an answer; a server that loads a large model may be silent for long
REFUSED_AFTER = 10.0  # the same where nothing listens any more
GONE_AFTER = 3  # answers in a row that a job is neither waiting, running nor over
