"""The other end of `engine.WorkerEngine`: answers JSON lines on standard input with JSON lines on standard output.

A question names a method of the adapter's worker class in `do`; the other fields are its arguments. Whatever the
engine itself prints goes to standard error, which is the runner's log.
"""

import json
import os
import sys

NUM_LINES = 3
NUM_CHARACTERS = 400


def serve(worker):
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        question = json.loads(line)
        try:
            reply = getattr(worker, question.pop("do"))(**question) or {}
        except Exception as error:  # Whatever the engine throws is its answer: the runner reports it and goes on.
            reply = {"error": f"{type(error).__name__}: {beginning(str(error))}"}
        answers.write(json.dumps(reply) + "\n")
        answers.flush()


def beginning(message):
    """The first lines of a message as one line: what follows is mostly where in the engine it happened."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return " ".join(lines[:NUM_LINES])[:NUM_CHARACTERS] or "no message"
