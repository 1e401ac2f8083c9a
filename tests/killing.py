"The beginning of a program that is killed beside one of its calls: when `left` of them are over"

DEADLY = """
import os, signal, sys

def deadly(owner, name, counts=lambda *args: True):
    "The process is killed before the call, or after it, when it is the one that was chosen"
    inner = getattr(owner, name)
    def call(*args, **more):
        global left
        for after in (False, True):
            found = inner(*args, **more) if after else None
            left -= counts(*args)
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return found
    setattr(owner, name, call)
"""
