"""A real application, Trac, for the integration tests: a wiki and tickets in SQLite, attachments in files.

    application.py make ENV DATABASE JOURNAL_MODE
                                             make an environment whose database lies there and has this journal mode
    application.py serve ENV                 serve it on loopback; says "ready URL"
    application.py use URL JOURNAL FIRST     work on through the web interface, as one author and one reader do, from
                                             step number FIRST; says "ready"
    application.py verify URL ENV DATABASE JOURNAL ACKNOWLEDGED SENT
                                             see that what is served is the state of a moment of the journal

`serve` and `use` go on until their standard input ends, so that they end with whoever started them, however that
ends. They say what they say on standard output.

JOURNAL has a line of JSON for each thing that the application has acknowledged; the next one is sent only then. A
snapshot that began with ACKNOWLEDGED lines in the journal, and was complete when there were SENT - 1, must have the
first ACKNOWLEDGED, and nothing after the first SENT.

All of it goes the way of a browser: login, cookies, forms with their tokens, uploads. Only the list of attachments that
the restored database has rows for is read from the database.
"""

import base64
import csv
import hashlib
import html.parser
import http.cookiejar
import io
import json
import os
import random
import socket
import sqlite3
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import closing

USER, PASSWORD = "ada", "secret"
START_SECONDS = 60
REQUEST_SECONDS = 60
MAX_ATTACHMENT_BYTES = 150_000
WORDS = "wave stone river night letter engine garden window paper signal harbour winter".split()
BOUNDARY = "----------ThisLineIsInNoAttachment"


# --- make and serve


def make(env, database, journal_mode):
    from trac.admin.console import run

    commands = [
        ["initenv", "Project", f"sqlite:{database}?journal_mode={journal_mode.lower()}&synchronous=normal"],
        # A log in the environment would change while it is read.
        ["config", "set", "logging", "log_type", "stderr"],
        ["config", "set", "logging", "log_level", "WARNING"],
    ]
    for command in commands:
        if status := run([env, *command]):
            sys.exit(status)


def at_end_of_input(act):
    def wait():
        while os.read(0, 4096):
            pass
        act()

    threading.Thread(target=wait, daemon=True).start()


def announce(url):
    """Say so when the application answers."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(urllib.parse.urlsplit(url).netloc.split(":"), REQUEST_SECONDS):
                pass
            print(f"ready {url}", flush=True)
            return
        except OSError:
            time.sleep(0.05)
    os._exit(1)


def serve(env):
    from trac.web import standalone

    digest = base64.b64encode(hashlib.sha1(PASSWORD.encode()).digest()).decode()
    passwords = f"{env}.htpasswd"
    with open(passwords, "w") as out:
        out.write(f"{USER}:{{SHA}}{digest}\n")
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = probe.getsockname()[1]
    # As abruptly as a power cut: what is in the database's log stays there.
    at_end_of_input(lambda: os._exit(0))
    threading.Thread(target=announce, args=[f"http://127.0.0.1:{port}"], daemon=True).start()
    sys.argv = ["tracd", "--hostname", "127.0.0.1", "--port", str(port), "--single-env",
                "--basic-auth", f"{os.path.basename(env)},{passwords},trac", env]
    standalone.main()


# --- a browser


class Form(html.parser.HTMLParser):
    """The fields of the form with an id, as a browser would send them if nobody touched them."""

    def __init__(self, text, name):
        super().__init__()
        self.name, self.inside, self.fields, self.area, self.select = name, False, {}, None, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        at = dict(attrs)
        if tag == "form":
            self.inside = at.get("id") == self.name
        elif not self.inside:
            pass
        elif tag == "input" and "name" in at:
            kind = at.get("type", "text")
            if kind in ("text", "hidden") or kind in ("checkbox", "radio") and "checked" in at:
                self.fields[at["name"]] = at.get("value") or ""
        elif tag == "textarea":
            self.area = at["name"]
            self.fields[self.area] = ""
        elif tag == "select":
            self.select = at.get("name")
        elif tag == "option" and self.select and (self.select not in self.fields or "selected" in at):
            self.fields[self.select] = at.get("value") or ""

    def handle_endtag(self, tag):
        if tag == "form":
            self.inside = False
        elif tag == "textarea":
            self.area = None
        elif tag == "select":
            self.select = None

    def handle_data(self, data):
        if self.area:
            self.fields[self.area] += data


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


class Browser:
    """Somebody at the application. Whatever is not as it should be is an error."""

    def __init__(self, url):
        self.url = url
        self.opener = urllib.request.build_opener(
            NoRedirect, urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))

    def request(self, path, status, body=None, headers=None):
        """Ask for a path; returns the body and where it redirects to. `status` is what the answer must have."""
        request = urllib.request.Request(self.url + path, body, headers or {})
        try:
            answer = self.opener.open(request, timeout=REQUEST_SECONDS)
        except urllib.error.HTTPError as e:
            answer = e
        with closing(answer):
            text = answer.read()
        if answer.status != status:
            sys.exit(f"{path}: {answer.status} instead of {status}\n{text.decode(errors='replace')[:4000]}")
        return text, answer.headers.get("Location", "")

    def exists(self, path):
        try:
            self.opener.open(self.url + path, timeout=REQUEST_SECONDS).close()
        except urllib.error.HTTPError as e:
            e.close()
            if e.code == 404:
                return False
            sys.exit(f"{path}: {e}")
        return True

    def get(self, path):
        return self.request(path, 200)[0]

    def form(self, path, name):
        fields = Form(self.get(path).decode(), name).fields
        if "__FORM_TOKEN" not in fields:
            sys.exit(f"{path}: there is no form {name}")
        return fields

    def login(self):
        word = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        self.request("/login", 302, headers={"Authorization": f"Basic {word}"})

    def submit(self, path, fields):
        """Send a form; returns where it leads to."""
        return self.request(path, 303, urllib.parse.urlencode(fields).encode())[1]

    def upload(self, path, fields, name, data):
        lines = []
        for key, value in fields.items():
            lines += [f"--{BOUNDARY}", f'Content-Disposition: form-data; name="{key}"', "", value]
        lines += [f"--{BOUNDARY}", f'Content-Disposition: form-data; name="attachment"; filename="{name}"',
                  "Content-Type: application/octet-stream", "", ""]
        body = "\r\n".join(lines).encode() + data + f"\r\n--{BOUNDARY}--\r\n".encode()
        self.request(path, 303, body, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"})


# --- use


class Author:
    """Writes wiki pages, tickets, comments, and attaches files, one after the other."""

    def __init__(self, url):
        self.browser = Browser(url)
        self.browser.login()
        self.ticket, self.page, self.version = None, None, 0
        self.steps = [self.new_ticket, self.attach_to_ticket, self.new_page, self.attach_to_page, self.edit_page,
                      self.comment]

    def step(self, number):
        """Do the next thing, all of whose names have the number; returns its line of the journal."""
        rng = random.Random(f"step {number}")
        text = " ".join(rng.choices(WORDS, k=rng.randint(20, 400))) + f" number {number}"
        do = self.steps.pop(0)
        self.steps.append(do)
        return do(number, rng, text)

    def new_ticket(self, number, rng, text):
        fields = self.browser.form("/newticket", "propertyform")
        fields |= {"field_summary": f"Ticket of step {number}", "field_description": text, "submit": "Create ticket"}
        self.ticket = self.browser.submit("/newticket", fields).rsplit("/", 1)[1]
        return {"kind": "ticket", "id": self.ticket, "summary": fields["field_summary"], "text": text}

    def comment(self, number, rng, text):
        path = f"/ticket/{self.ticket}"
        fields = self.browser.form(path, "propertyform") | {"comment": text, "submit": "Submit changes"}
        self.browser.submit(path, fields)
        return {"kind": "comment", "id": self.ticket, "text": text}

    def new_page(self, number, rng, text):
        self.page, self.version = f"PageOfStep{number}", 0
        return self.edit_page(number, rng, text)

    def edit_page(self, number, rng, text):
        path = f"/wiki/{self.page}"
        fields = self.browser.form(f"{path}?action=edit", "edit") | {"text": text, "save": "Submit changes"}
        self.browser.submit(path, fields)
        self.version += 1
        return {"kind": "page", "id": self.page, "version": self.version, "text": text}

    def attach_to_ticket(self, number, rng, text):
        return self.attach("ticket", self.ticket, number, rng)

    def attach_to_page(self, number, rng, text):
        return self.attach("wiki", self.page, number, rng)

    def attach(self, realm, owner, number, rng):
        path, name = f"/attachment/{realm}/{owner}/", f"file{number}.bin"
        data = rng.randbytes(rng.randint(1, MAX_ATTACHMENT_BYTES))
        self.browser.upload(path, self.browser.form(f"{path}?action=new", "attachment"), name, data)
        return {"kind": "attachment", "realm": realm, "id": owner, "name": name, "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest()}


def read_on(url, ended, failed):
    """A reader who is not logged in."""
    browser = Browser(url)
    try:
        while not ended.is_set():
            for path in ("/wiki", "/report/1", "/timeline", "/wiki/TitleIndex", "/search?q=stone&ticket=on&wiki=on"):
                browser.get(path)
                ended.wait(0.05)
    except BaseException:
        failed.set()
        raise


def use(url, journal, first):
    ended, failed = threading.Event(), threading.Event()
    at_end_of_input(ended.set)
    reader = threading.Thread(target=read_on, args=[url, ended, failed])
    reader.start()
    try:
        author = Author(url)
        print("ready", flush=True)
        with open(journal, "w") as out:
            number = int(first)
            while not ended.is_set() and not failed.is_set():
                out.write(json.dumps(author.step(number)) + "\n")
                out.flush()
                number += 1
    finally:
        ended.set()
        reader.join()
    sys.exit(failed.is_set())


# --- verify


def attachment_path(item):
    return f"/raw-attachment/{item['realm']}/{item['id']}/{item['name']}"


def expect(item, found, wanted):
    if found != wanted:
        sys.exit(f"{item} was acknowledged, and now it is: {found!r}")


def must_be_there(browser, item):
    if item["kind"] == "page":
        text = browser.get(f"/wiki/{item['id']}?version={item['version']}&format=txt").decode()
        expect(item, text.strip(), item["text"])
    elif item["kind"] == "ticket":
        text = browser.get(f"/ticket/{item['id']}?format=csv").decode("utf-8-sig")
        row = next(csv.DictReader(io.StringIO(text)))
        expect(item, (row["summary"], row["description"].strip()), (item["summary"], item["text"]))
    elif item["kind"] == "comment":
        expect(item, item["text"] in " ".join(browser.get(f"/ticket/{item['id']}").decode().split()), True)
    else:
        data = browser.get(attachment_path(item))
        expect(item, (len(data), hashlib.sha256(data).hexdigest()), (item["bytes"], item["sha256"]))


def is_there(browser, item):
    if item["kind"] == "page":
        return browser.exists(f"/wiki/{item['id']}?version={item['version']}&format=txt")
    if item["kind"] == "ticket":
        return browser.exists(f"/ticket/{item['id']}?format=csv")
    if item["kind"] == "comment":
        path = f"/ticket/{item['id']}"
        return browser.exists(path) and item["text"] in " ".join(browser.get(path).decode().split())
    return browser.exists(attachment_path(item))


def verify(url, env, database, journal, acknowledged, sent):
    with open(journal) as lines:
        items = [json.loads(line) for line in lines]
    browser = Browser(url)
    for item in items[:int(acknowledged)]:
        must_be_there(browser, item)
    for item in items[int(sent):]:
        if is_there(browser, item):
            sys.exit(f"{item} was sent only after the snapshot was complete, and it is there")
    with closing(sqlite3.connect(f"file:{env}/{database}?mode=ro", uri=True)) as db:
        rows = db.execute("SELECT type, id, filename FROM attachment").fetchall()
    for realm, owner, name in rows:
        browser.get(attachment_path({"realm": realm, "id": owner, "name": name}))
    print(f"{acknowledged} things of the journal and {len(rows)} attachments are there")


if __name__ == "__main__":
    {"make": make, "serve": serve, "use": use, "verify": verify}[sys.argv[1]](*sys.argv[2:])
