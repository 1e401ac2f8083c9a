"""Who is told of an alarm: a log, a chat, a mailbox, Alertmanager; each in one small file.

In: a `Notice`, an alarm and what became of it; an address, as `slack:SLACK_HOOK`.
Out: `sink`, which sends notices; `register` adds a kind of sink.
Imports: the ground, `data` (the addresses and passwords of readers) and `monitoring.alarms`.
"""
