"""Turn the raw measurements of compare.sh into its Markdown table and its JSON file.

    report.py RAW JSON       the table on stdout, meta data, medians and measurements to JSON

A cell is a median over the rounds, with the ratio to the reference in brackets. A row without measurements is
left out. Sizes are in units of 1,000,000 bytes.
"""

import json
import sys
from collections import defaultdict
from statistics import median


class Results:
    """The measurements by row and peer; within a round, several commands of one row are added up."""

    def __init__(self, records):
        self.meta = next(record for record in records if record["row"] == "meta")
        peers = [pair.split(":", 1) for pair in self.meta["peers"].split(",") if pair]
        # The project's own column comes last, whoever's turn came first.
        self.peers = dict(sorted(peers, key=lambda pair: pair[0] == "snapshot"))
        rounds = defaultdict(dict)
        for record in records:
            if record["row"] in ("meta", "setup"):
                continue
            fields = rounds[record["row"], record["peer"], record.get("round", 0)]
            for key, value in record.items():
                if key == "maxrss_kib":
                    fields[key] = max(value, fields.get(key, 0))
                elif key not in ("row", "peer", "round"):
                    fields[key] = value + fields.get(key, 0)
        self.values = defaultdict(list)
        for (row, peer, _), fields in rounds.items():
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
        elif results.meta[f"reads_{peer}"] == "live":
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
        cells.append(against(results.get("check", peer), base, seconds, "s"))
    return ["check, all data read", f"`b3sum` of each repository {' / '.join(bases)} s" if bases else "", *cells]


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


def memory_row(results):
    cells = []
    for peer in results.peers:
        both = [results.get(row, peer, "maxrss_kib") for row in ("first", "restore")]
        cells.append(" / ".join(f"{kib / 1024:.0f}" if kib else "–" for kib in both) + " MiB" if any(both) else "")
    return ["peak memory of create / restore", "", *cells]


def table(results):
    meta = results.meta
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
        memory_row(results),
    ]
    head = ["", "reference", *(f"`{name}`" if peer == "snapshot" else name for peer, name in results.peers.items())]
    lines = [
        f"Measured on {meta['date']} with `benches/compare.sh` on {meta['cores']} cores of {meta['cpu']}, "
        f"{meta['memory_gib']} GiB of memory, {meta['kernel']}, {meta['filesystem']}. Medians; in brackets the ratio "
        "to the reference.", "",
        "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows if any(row[2:])]
    return "\n".join(lines)


def main():
    raw, out = sys.argv[1:]
    with open(raw) as file:
        records = [json.loads(line) for line in file]
    results = Results(records)
    with open(out, "w") as file:
        json.dump({"meta": results.meta, "medians": results.medians(), "measurements": records}, file, indent=1)
    print(table(results))


if __name__ == "__main__":
    main()
