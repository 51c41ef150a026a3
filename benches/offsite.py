#!/usr/bin/env python3
"""Measure `snapshot`, restic and rustic with repositories behind a long and narrow line, and print a Markdown table.

    benches/offsite.py [--snapshot BINARY] [--peers A,B] [--servers sftp,s3] [--rows A,B] [--scale N] [--work DIR]

The servers are a real sshd and Ceph's S3 gateway on the loopback (tests/it/servers), behind slow_link.py: 50 ms of
round-trip time, 20 MB/s each way. RESTIC=… and RUSTIC=… name programs that are not in PATH (install-peers.sh); one that is
missing is left out. --scale N takes 1/N of the data, to try things out. Rows:

    first      first upload of an application's data (make_data.py --scale 6: SQLite and attachments, 250 MB)
    unchanged  again, nothing has changed
    night      40 rows changed, a new file of 200 KB; beside it the same on a local repository
    restore    all of it, by a machine that knows nothing of the repository
    large      first upload of 1 GiB that doesn't compress
    killed     the same, killed (-9) half-way, and run again: what was sent beyond 1 GiB in all
    one        one file of 1 MiB out of a repository with 1,000 snapshots, by a machine that knows nothing of it

A figure in brackets is the share of the line that was used: bytes that crossed it divided by what it could have passed.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
SERVERS = HERE.parent / "tests/it/servers"
RATE = 20e6
S3_USER = {"AWS_ACCESS_KEY_ID": "OWNER", "AWS_SECRET_ACCESS_KEY": "secret/of+the/owner", "AWS_REGION": "us-east-1"}
MIB = 1 << 20


def say(text):
    print(time.strftime("%T"), text, file=sys.stderr, flush=True)


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Server:
    """A script of tests/it/servers, and the line before it."""

    def __init__(self, work, name, ports):
        self.dir = work / f"server-{name}-{time.time_ns()}"
        self.dir.mkdir()
        command = [SERVERS / name, self.dir, *map(str, ports)]
        self.script = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self.script.stdout.readline().strip() != "ready":
            sys.exit(f"{name} does not start")
        self.near = ports[0] if len(ports) == 1 else ports[1]
        self.far = free_port()
        self.line = subprocess.Popen([sys.executable, HERE / "slow_link.py", str(self.far), str(self.near)])
        time.sleep(0.5)

    def end(self):
        self.line.kill()
        self.script.stdin.close()
        self.script.wait()


class Peer:
    """A program with a repository at a place; `cache` is its own."""

    def __init__(self, bench, place):
        self.bench, self.place = bench, place
        self.dir = bench.work / f"{self.name}-{place.name}"
        shutil.rmtree(self.dir, ignore_errors=True)
        self.dir.mkdir()
        self.env = os.environ | S3_USER | {"HOME": str(self.dir), "XDG_CACHE_HOME": str(self.dir / "cache")}
        self.env |= self.settings()

    def forget_everything(self):
        shutil.rmtree(self.dir / "cache", ignore_errors=True)

    def run(self, *args):
        """Seconds, peak MiB and output of a command that must succeed."""
        started = time.perf_counter()
        command = [self.program, *map(str, args)]
        child = subprocess.Popen(command, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = child.stdout.read(), child.stderr.read()
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - started
        if status:
            sys.exit(f"{' '.join(command)}: {err.decode()}")
        return seconds, usage.ru_maxrss / 1024, out


class Snapshot(Peer):
    name = "snapshot"

    def __init__(self, bench, place):
        self.program = str(bench.args.snapshot)
        super().__init__(bench, place)
        self.run("init", "-q")

    def settings(self):
        return self.place.snapshot() | {"SNAPSHOT_KEY_FILE": str(self.dir / "key")}

    def create(self, source):
        seconds, peak, out = self.run("create", "-q", "--json", source)
        storage = json.loads(out).get("storage") or {"bytes_up": 0}
        return seconds, peak, storage["bytes_up"]

    def restore(self, target, path=""):
        only = ["--include", path] if path else []
        seconds, peak, out = self.run("restore", "latest", "-q", "--json", "--target", target, *only)
        return seconds, peak, json.loads(out)["storage"]["bytes_down"]


class Restic(Peer):
    name = "restic"
    program = os.environ.get("RESTIC", "restic")

    def __init__(self, bench, place):
        super().__init__(bench, place)
        self.run(*self.place.restic_options(), "init", "-q")

    def settings(self):
        return {"RESTIC_REPOSITORY": self.place.restic(), "RESTIC_PASSWORD": "bench"}

    def create(self, source):
        seconds, peak, out = self.run(*self.place.restic_options(), "backup", "-q", "--json", source)
        summary = json.loads(out.splitlines()[-1])
        # Older ones say only how long it was before compression.
        return seconds, peak, summary.get("data_added_packed")

    def restore(self, target, path=""):
        only = ["--include", path] if path else []
        options = self.place.restic_options()
        seconds, peak, _ = self.run(*options, "restore", "-q", "latest", "--target", target, *only)
        return seconds, peak, None


class Rustic(Peer):
    name = "rustic"
    program = os.environ.get("RUSTIC", "rustic")

    def __init__(self, bench, place):
        super().__init__(bench, place)
        self.run("init", "--set-compression", "3")

    def settings(self):
        config = self.dir / "config/rustic"
        config.mkdir(parents=True)
        options = "\n".join(f'{key} = "{value}"' for key, value in self.place.rustic_options().items())
        text = f'[repository]\nrepository = "{self.place.rustic()}"\npassword = "bench"\n\n[repository.options]\n{options}\n'
        (config / "rustic.toml").write_text(text)
        return {"XDG_CONFIG_HOME": str(self.dir / "config"), "RUSTIC_NO_PROGRESS": "true", "RUSTIC_LOG_LEVEL": "warn"}

    def create(self, source):
        seconds, peak, out = self.run("backup", "--json", source)
        return seconds, peak, json.loads(out)["summary"]["data_added_packed"]

    def restore(self, target, path=""):
        seconds, peak, _ = self.run("restore", f"latest:{path}" if path else "latest", target)
        return seconds, peak, None


class Sftp:
    def __init__(self, bench, name):
        self.server, self.name = bench.server("sshd.sh", 1), f"sftp-{name}"
        self.folder = bench.work / f"far-{name}"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.login = f"{os.environ.get('USER', 'root')}@127.0.0.1"
        self.ssh = f"ssh -F {self.server.dir}/ssh_config"

    def snapshot(self):
        url = f"sftp://{self.login}:{self.server.far}{self.folder}"
        return {"SNAPSHOT_REPO": url, "SNAPSHOT_SSH_COMMAND": self.ssh}

    def restic(self):
        return f"sftp:{self.login}:{self.folder}"

    def restic_options(self):
        return ["-o", f"sftp.command={self.ssh} -p {self.server.far} {self.login} -s sftp"]

    def rustic(self):
        return "opendal:sftp"

    def rustic_options(self):
        user, _ = self.login.split("@")
        self.folder.mkdir(parents=True)
        return {
            "endpoint": f"ssh://127.0.0.1:{self.server.far}",
            "user": user,
            "key": f"{self.server.dir}/client_key",
            "root": str(self.folder),
            "known_hosts_strategy": "accept",
        }

    def put(self, folder):
        """Puts a repository that was made here where the server has it."""
        shutil.copytree(folder, self.folder)


class S3:
    def __init__(self, bench, name):
        self.server, self.name = bench.server("ceph.sh", 3), f"s3-{name}"
        self.near, self.far = (f"http://127.0.0.1:{port}" for port in (self.server.near, self.server.far))
        self.bucket = f"bench-{name}-{time.time_ns()}"
        command = [sys.executable, SERVERS / "s3.py", self.near, self.bucket, "make"]
        subprocess.run(command, env=os.environ | S3_USER, check=True)

    def snapshot(self, url=None):
        return {"SNAPSHOT_REPO": f"s3://{self.bucket}/app", "AWS_ENDPOINT_URL": url or self.far}

    def restic(self):
        return f"s3:{self.far}/{self.bucket}/app"

    def restic_options(self):
        return ["-o", "s3.bucket-lookup=path"]

    def rustic(self):
        return "opendal:s3"

    def rustic_options(self):
        options = {"bucket": self.bucket, "root": "/app", "endpoint": self.far, "region": "us-east-1"}
        return options | {
            "access_key_id": S3_USER["AWS_ACCESS_KEY_ID"],
            "secret_access_key": S3_USER["AWS_SECRET_ACCESS_KEY"],
        }


class Local:
    name = "local"

    def __init__(self, bench):
        self.folder = bench.work / "near"
        shutil.rmtree(self.folder, ignore_errors=True)

    def snapshot(self):
        return {"SNAPSHOT_REPO": str(self.folder)}


PLACES = {"sftp": Sftp, "s3": S3}
PEERS = {"snapshot": Snapshot, "restic": Restic, "rustic": Rustic}
ROWS = ["first", "unchanged", "night", "restore", "large", "killed", "one"]


def share(count, seconds):
    return f" ({100 * count / RATE / seconds:.0f} %)" if count else ""


class Bench:
    def __init__(self, args):
        self.args, self.work, self.servers = args, args.work, {}
        self.cells = {}

    def server(self, script, ports):
        if script not in self.servers:
            self.servers[script] = Server(self.work, script, [free_port() for _ in range(ports)])
        return self.servers[script]

    def empty_s3(self):
        """The gateway's store is in memory, and small."""
        if server := self.servers.pop("ceph.sh", None):
            server.end()

    def note(self, row, column, text):
        say(f"{row}, {column}: {text}")
        self.cells[row, column] = text

    def application(self):
        folder = self.work / "data"
        shutil.rmtree(folder, ignore_errors=True)
        make = [sys.executable, HERE / "make_data.py", "make", folder, "--scale", str(6 * self.args.scale)]
        subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
        return folder / "app"

    def nights(self, app, peers):
        with sqlite3.connect(app / "data.db") as db:
            changed = "UPDATE events SET data = hex(randomblob(60)) WHERE rowid IN (SELECT rowid FROM events ORDER BY random() LIMIT 40)"
            db.execute(changed)
        db.close()
        (app / "storage/new.bin").write_bytes(os.urandom(200_000))
        near = [self.near.create(app)[0]]
        for column, peer in peers.items():
            seconds, peak, sent = peer.create(app)
            self.note("night", column, f"{seconds:.2f} s" + (f", {sent / 1e3:,.0f} KB sent" if sent else ""))
        self.note("night", "snapshot, local", f"{near[0]:.2f} s")

    def usual(self, name):
        """A first upload, nights, a restore."""
        app = self.application()
        size = sum(file.stat().st_size for file in app.rglob("*") if file.is_file())
        say(f"{size / 1e6:.0f} MB")
        self.near = Snapshot(self, Local(self))
        self.near.create(app)
        peers = {f"{peer}, {name}": PEERS[peer](self, PLACES[name](self, peer)) for peer in self.args.peers}
        for column, peer in peers.items():
            seconds, peak, sent = peer.create(app)
            self.note("first", column, f"{seconds:.1f} s{share(sent, seconds)}, {peak:.0f} MiB")
        for column, peer in peers.items():
            seconds, peak, _ = peer.create(app)
            self.note("unchanged", column, f"{seconds:.2f} s")
        self.nights(app, peers)
        for column, peer in peers.items():
            peer.forget_everything()
            target = self.work / "restored"
            shutil.rmtree(target, ignore_errors=True)
            seconds, peak, received = peer.restore(target)
            self.note("restore", column, f"{seconds:.1f} s{share(received, seconds)}, {peak:.0f} MiB")
            assert any(target.rglob("new.bin"))

    def large(self, name):
        source, files = self.work / "large", max(1, 64 // self.args.scale)
        size = files * 16 * MIB
        if not source.exists():
            source.mkdir()
            for n in range(files):
                (source / str(n)).write_bytes(os.urandom(16 * MIB))
        for peer in self.args.peers:
            if "large" in self.args.rows:
                self.empty_s3()
                one = PEERS[peer](self, PLACES[name](self, f"{peer}-large"))
                seconds, peak, sent = one.create(source)
                self.note("large", f"{peer}, {name}", f"{seconds:.1f} s{share(sent, seconds)}, {peak:.0f} MiB")
        if "killed" in self.args.rows:
            self.empty_s3()
            one = Snapshot(self, PLACES[name](self, "killed"))
            command = [one.program, "create", "-q", source]
            child = subprocess.Popen(command, env=one.env)
            time.sleep(size / RATE / 2)
            child.send_signal(signal.SIGKILL)
            child.wait()
            # What was on its way may still arrive; what has is not sent again.
            time.sleep(3)
            before = self.arrived(one.place)
            _, _, sent = one.create(source)
            self.note("killed", f"snapshot, {name}", f"{100 * (before + sent - size) / size:.1f} % more")

    def arrived(self, place):
        if isinstance(place, Sftp):
            return sum(file.stat().st_size for file in (place.folder / "packs").rglob("*") if file.is_file())
        command = [sys.executable, SERVERS / "s3.py", place.near, place.bucket, "objects"]
        out = subprocess.run(command, env=os.environ | S3_USER, check=True, stdout=subprocess.PIPE, text=True).stdout
        return sum(int(line.split()[0]) for line in out.splitlines() if "/packs/" in line)

    def one(self, name):
        near = Snapshot(self, Local(self))
        source = self.work / "tiny"
        shutil.rmtree(source, ignore_errors=True)
        source.mkdir()
        (source / "wanted").write_bytes(os.urandom(MIB))
        for n in range(1000 // self.args.scale):
            (source / f"file-{n % 50}").write_bytes(os.urandom(2000))
            near.create(source)
        place = PLACES[name](self, "one")
        if isinstance(place, Sftp):
            place.put(self.work / "near")
        else:
            far = Snapshot(self, place)
            far.env |= place.snapshot(place.near) | {
                "SNAPSHOT_FROM_REPO": near.env["SNAPSHOT_REPO"],
                "SNAPSHOT_FROM_KEY_FILE": near.env["SNAPSHOT_KEY_FILE"],
            }
            far.run("copy", "-q")
            far.env |= place.snapshot()
        if isinstance(place, Sftp):
            far = near
            far.env |= place.snapshot()
        far.forget_everything()
        target = self.work / "one"
        shutil.rmtree(target, ignore_errors=True)
        seconds, peak, _ = far.restore(target, "wanted")
        assert [file.stat().st_size for file in target.rglob("wanted")] == [MIB]
        self.note("one", f"snapshot, {name}", f"{seconds:.2f} s")

    def table(self):
        columns = sorted({column for _, column in self.cells}, key=lambda column: column.split(", ")[::-1])
        print("| |", " | ".join(columns), "|")
        print("|---" * (len(columns) + 1) + "|")
        for row in ROWS:
            if any(name == row for name, _ in self.cells):
                print(f"| {row} |", " | ".join(self.cells.get((row, column), "") for column in columns), "|")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    listed = lambda text: text.split(",")
    parser.add_argument("--snapshot", type=Path, default=HERE.parent / "target/release/snapshot")
    parser.add_argument("--peers", type=listed, default=list(PEERS))
    parser.add_argument("--servers", type=listed, default=list(PLACES))
    parser.add_argument("--rows", type=listed, default=ROWS)
    parser.add_argument("--scale", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path(os.environ.get("TMPDIR", "/tmp")) / "snapshot-offsite")
    args = parser.parse_args()
    args.snapshot = args.snapshot.resolve()
    args.peers = [peer for peer in args.peers if peer == "snapshot" or shutil.which(PEERS[peer].program)]
    shutil.rmtree(args.work, ignore_errors=True)
    args.work.mkdir(parents=True)
    bench = Bench(args)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        for name in args.servers:
            if {"first", "unchanged", "night", "restore"} & set(args.rows):
                bench.usual(name)
            if {"large", "killed"} & set(args.rows):
                bench.large(name)
            if "one" in args.rows:
                bench.one(name)
    finally:
        for server in bench.servers.values():
            server.end()
        shutil.rmtree(args.work, ignore_errors=True)
    bench.table()


if __name__ == "__main__":
    main()
