"""The commands that look at what runs: windows of new rows, alarms.

In: words of a command line.
Out: functions and typer apps that `cli` collects.
Imports: every room below, and `commands.terminal`; nothing imports this one but `cli`.
"""
