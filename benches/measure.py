"""Run a command and append one JSON record of what it took.

    measure.py RAW LOG key=value... -- COMMAND...     runs, adds wall, cpu and maxrss_kib to the record
    measure.py RAW LOG key=value...                   only appends the record

The wall time is taken around fork and wait, so that no interpreter's start is in it; the memory is the peak of
the largest process among the command and the children it waited for. What the command prints goes to LOG;
when it fails, the end of that is shown and the status is 1. With `tolerate=yes` the status of the command becomes part
of the record instead.
"""

import json
import os
import sys
import time


def number(text):
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def run(command, log, tolerate):
    """Run `command` with its output in the file `log`; return the measured fields."""
    with open(log, "wb") as out:
        started = time.perf_counter()
        actions = [(os.POSIX_SPAWN_DUP2, out.fileno(), 1), (os.POSIX_SPAWN_DUP2, out.fileno(), 2)]
        child = os.posix_spawnp(command[0], command, os.environ, file_actions=actions)
        _, status, usage = os.wait4(child, 0)
        wall = time.perf_counter() - started
    status = os.waitstatus_to_exitcode(status)
    if status and not tolerate:
        with open(log, "rb") as out:
            tail = out.read()[-4000:].decode(errors="replace")
        sys.exit(f"{tail}\nstatus {status}: {' '.join(command)}")
    taken = {"wall": round(wall, 4), "cpu": round(usage.ru_utime + usage.ru_stime, 3), "maxrss_kib": usage.ru_maxrss}
    return taken | ({"status": status} if tolerate else {})


def main():
    raw, log, *rest = sys.argv[1:]
    cut = rest.index("--") if "--" in rest else len(rest)
    record = {key: number(value) for key, value in (word.split("=", 1) for word in rest[:cut])}
    if command := rest[cut + 1 :]:
        record |= run(command, log, record.pop("tolerate", None))
    with open(raw, "a") as out:
        out.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
