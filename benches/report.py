"""Turn the raw measurements of compare.sh into its Markdown table and its JSON file.

    report.py RAW JSON [--add] [--into FILE]...

The table goes to stdout, and meta data, medians and measurements to JSON. With --add, what JSON has already is kept
where RAW has nothing for the row and peer. With --into the table also replaces what stands in FILE between the lines
BEGIN and END, see below.

A cell is a median over the rounds, with the ratio to the reference in brackets. A row without measurements is
left out. Sizes are in units of 1,000,000 bytes.
"""

import argparse
import json
import os
import sys
from collections import defaultdict
from statistics import median

BEGIN, END = "<!-- comparison: begin -->", "<!-- comparison: end -->"
BUSY_LOAD = 0.5
VERDICTS = ("malformed", "torn", "old", "absent")


def peers_of(meta):
    return dict(pair.split(":", 1) for pair in meta["peers"].split(",") if pair)


class Results:
    """The measurements by row and peer; within a round, several commands of one row are added up."""

    def __init__(self, records):
        self.metas = [record for record in records if record["row"] == "meta"]
        peers, self.reads = {}, {}
        for meta in self.metas:
            peers |= peers_of(meta)
            self.reads |= {key.removeprefix("reads_"): reads for key, reads in meta.items() if key.startswith("reads_")}
        # The project's own column comes last, whoever's turn came first.
        self.peers = dict(sorted(peers.items(), key=lambda pair: pair[0] == "snapshot"))
        self.rounds, self.reasons = defaultdict(dict), {}
        for record in records:
            if record["row"] in ("meta", "setup"):
                continue
            if "reason" in record:
                self.reasons[record["row"], record["peer"]] = record["reason"]
                continue
            fields = self.rounds[record["row"], record["peer"], record.get("round", 0)]
            for key, value in record.items():
                if key in ("maxrss_kib", "status"):
                    fields[key] = max(value, fields.get(key, 0))
                elif key not in ("row", "peer", "round"):
                    fields[key] = value + fields.get(key, 0)
        self.values = defaultdict(list)
        for (row, peer, _), fields in self.rounds.items():
            for key, value in fields.items():
                self.values[row, peer, key].append(value)

    def get(self, row, peer, key="wall"):
        """The median, or None where nothing was measured."""
        values = self.values.get((row, peer, key))
        return median(values) if values else None

    def medians(self):
        out = defaultdict(lambda: defaultdict(dict))
        for (row, peer, key), values in self.values.items():
            out[row][peer][key] = {"median": median(values), "min": min(values), "max": max(values), "n": len(values)}
        return out


def seconds(value):
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def megabytes(value):
    value /= 1e6
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def against(value, reference, show, unit):
    """A cell: the value and its ratio to the reference."""
    if value is None:
        return ""
    return f"{show(value)} {unit}" + (f" ({times(value / reference)})" if reference else "")


def times(ratio):
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.1f}" if ratio < 100 else f"{ratio:,.0f}"


def simple(title, command, row, results):
    """A row of wall times, each against the reference's."""
    base = results.get(row, "reference")
    cells = [against(results.get(row, peer), base, seconds, "s") for peer in results.peers]
    return [title, f"{command} {seconds(base)} s" if base else "", *cells]


def size_row(results):
    base = results.get("size", "tar", "bytes")
    cells = [against(results.get("size", peer, "bytes"), base, megabytes, "MB") for peer in results.peers]
    return ["repository after it", f"`tar \\| zstd -3` {megabytes(base)} MB" if base else "", *cells]


def growth_row(title, row, results):
    """Repository growth; the ratio is to the changed pages and the added files, compressed."""
    pages, changed, together, patch, files = (
        results.get(row, "pages", key)
        for key in ("pages_changed", "bytes_changed", "pages_zstd", "pages_patch", "files_bytes"))
    if not pages:
        return [title, "", *("" for _ in results.peers)]
    reference = (f"those pages zstd -3 together {megabytes(together)} MB; `--patch-from` the old ones "
                 f"{megabytes(patch)} MB")
    title += f" ({pages:,.0f} pages, {megabytes(changed)} MB changed"
    if files:
        reference += f"; files {megabytes(files)} MB"
        title += f"; {megabytes(files)} MB of files"
    cells = [against(results.get(row, peer, "bytes"), together + files, megabytes, "MB") for peer in results.peers]
    return [title + ")", reference, *cells]


def night_row(results):
    """Peers that cannot read a live database come on top of the copy that is the reference."""
    base = results.get("night", "reference")
    cells = []
    for peer in results.peers:
        wall = results.get("night", peer)
        if wall is None:
            cells.append("")
        elif results.reads[peer] == "live":
            cells.append(f"{seconds(wall)} s in all ({times(wall / base)})")
        else:
            cells.append(f"+{seconds(wall)} s ({times((base + wall) / base)})")
    return ["a night, wall", f"`.backup` alone {seconds(base)} s" if base else "", *cells]


def check_row(results):
    """Each peer against the hashing of its own repository."""
    cells, bases = [], []
    for peer in results.peers:
        base = results.get("b3sum", peer)
        bases += [seconds(base)] if base else []
        reason = results.reasons.get(("check", peer))
        both = [against(results.get(row, peer), base, seconds, "s") for row in ("check", "check_again")]
        cells.append(f"– ({reason})" if reason else " / ".join(filter(None, both)))
    return ["check, all data read: first / again", f"`b3sum` of each repository {' / '.join(bases)} s", *cells]


def prune_row(results):
    cells = []
    for peer in results.peers:
        wall, before, after = (results.get("prune", peer, key) for key in ("wall", "bytes_before", "bytes"))
        cells.append(f"{seconds(wall)} s; {megabytes(before)} → {megabytes(after)} MB" if wall else "")
    return ["prune 12 generations to 2, wall", "", *cells]


def tiny_row(results):
    rows = ("tiny_first", "tiny_unchanged", "tiny_restore")
    bases = [results.get(row, "reference") for row in rows]
    if None in bases:
        return ["", "", *("" for _ in results.peers)]
    cells = [" / ".join(against(results.get(row, peer), base, seconds, "s") for row, base in zip(rows, bases))
             for peer in results.peers]
    labels = ("`tar \\| zstd`", "`find`", "untar")
    reference = " / ".join(f"{label} {seconds(base)} s" for label, base in zip(labels, bases))
    return ["20,000 tiny files: first / unchanged / restore to tmpfs", reference, *cells]


def live_row(results):
    """How many restored copies were sound; of the others what they were, and whether the tool had said anything."""
    cells = []
    for peer in results.peers:
        rounds = [fields for (row, name, _), fields in results.rounds.items() if (row, name) == ("live", peer)]
        unsound = [fields for fields in rounds if "sound" not in fields]
        cell = f"{len(rounds) - len(unsound)} of {len(rounds)}" if rounds else ""
        if unsound:
            counts = {verdict: sum(verdict in fields for fields in unsound) for verdict in VERDICTS}
            kinds = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
            warned = sum(fields.get("status", 0) != 0 for fields in unsound)
            cell += f" ({kinds}; {warned or 'none'} of them with a warning)"
        cells.append(cell)
    return ["live database, 50 transactions a second: restored copies sound", "", *cells]


def memory_row(results):
    cells = []
    for peer in results.peers:
        both = [results.get(row, peer, "maxrss_kib") for row in ("first", "restore")]
        cells.append(" / ".join(f"{kib / 1024:.0f}" if kib else "–" for kib in both) + " MiB" if any(both) else "")
    return ["peak memory of create / restore", "", *cells]


def heading(results):
    meta = results.metas[-1]
    dates = sorted({meta["date"] for meta in results.metas})
    load = max(float(meta["load"]) for meta in results.metas)
    text = (
        f"Measured on {' to '.join(dict.fromkeys((dates[0], dates[-1])))} with `benches/compare.sh` on {meta['cores']} "
        f"cores of {meta['cpu']}, {meta['memory_gib']} GiB of memory, {meta['kernel']}, {meta['filesystem']}: 512 MiB of "
        "SQLite and 1 GiB in 3,000 attachments, half of it incompressible. Medians; in brackets the ratio to the "
        "reference. All but `snapshot` read a copy that `sqlite3 .backup` made; only the row \"a night, wall\" counts the "
        "time for that, and in the row \"live database\" nobody gets one.")
    if load > BUSY_LOAD:
        text += f" The machine was not idle (load {load:.1f})."
    if meta["scale"] != 1:
        text = f"**Made with `--scale {meta['scale']}` to try the script out: these figures say nothing.** " + text
    return text


def table(results):
    rows = [
        simple("first snapshot, wall", "`tar \\| zstd -3 -T2`", "first", results),
        size_row(results),
        simple("unchanged again, wall", "`find -printf`", "unchanged", results),
        growth_row("a night: growth", "night", results),
        growth_row("a quiet night: growth", "quiet", results),
        night_row(results),
        simple("full restore to tmpfs, wall", "`zstd -d \\| tar x`", "restore", results),
        check_row(results),
        prune_row(results),
        tiny_row(results),
        live_row(results),
        memory_row(results),
    ]
    head = ["", "reference", *(f"`{name}`" if peer == "snapshot" else name for peer, name in results.peers.items())]
    lines = [heading(results), "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows if any(row[2:])]
    return "\n".join(lines)


def still_good(old, new):
    """The records of `old` that `new` does not replace."""
    meta = next(record for record in new if record["row"] == "meta")
    if scales := {record["scale"] for record in old if record["row"] == "meta"} - {meta["scale"]}:
        sys.exit(f"the results to add to were made with --scale {scales.pop()}")
    versions = {}
    for record in old:
        versions |= peers_of(record) if record["row"] == "meta" else {}
    outdated = {peer for peer, version in peers_of(meta).items() if versions.get(peer, version) != version}
    replaced = {(record["row"], record["peer"]) for record in new if record["row"] != "meta"}
    return [record for record in old if record["row"] == "meta"
            or (record["row"], record["peer"]) not in replaced and record["peer"] not in outdated]


def put_into(path, text):
    with open(path) as file:
        before, begin, rest = file.read().partition(BEGIN + "\n")
    _, end, after = rest.partition(END)
    if not (begin and end):
        sys.exit(f"{path}: the lines {BEGIN} and {END} are not there")
    with open(path, "w") as file:
        file.write(f"{before}{begin}{text}\n{end}{after}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("raw")
    parser.add_argument("json")
    parser.add_argument("--add", action="store_true")
    parser.add_argument("--into", action="append", default=[], metavar="FILE")
    args = parser.parse_args()
    with open(args.raw) as file:
        records = [json.loads(line) for line in file]
    if args.add and os.path.exists(args.json):
        with open(args.json) as file:
            records = still_good(json.load(file)["measurements"], records) + records
    results = Results(records)
    with open(args.json, "w") as file:
        json.dump({"medians": results.medians(), "measurements": records}, file, indent=1)
    print(table(results))
    for path in args.into:
        put_into(path, table(results))


if __name__ == "__main__":
    main()
