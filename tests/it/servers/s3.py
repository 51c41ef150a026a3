"""Calls of S3 that the program has no use for: s3.py URL BUCKET ORDER [FILE], signed with AWS_ACCESS_KEY_ID and so on.

`make` makes the bucket, `policy FILE` gives it a policy, `objects` prints the keys with their sizes, one a line,
`read KEY` prints an object.
"""

import datetime
import hashlib
import hmac
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
import xml.etree.ElementTree


def signature(secret, day, text):
    key = ("AWS4" + secret).encode()
    for part in (day, "us-east-1", "s3", "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def call(method, url, path, query=(), body=b""):
    """One signed request (AWS signature 4); returns the body of the answer."""
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    day = now[:8]
    path = urllib.parse.quote(path)
    query = "&".join(f"{urllib.parse.quote(k, safe='')}={urllib.parse.quote(v, safe='')}" for k, v in sorted(query))
    digest = hashlib.sha256(body).hexdigest()
    headers = {"host": urllib.parse.urlsplit(url).netloc, "x-amz-content-sha256": digest, "x-amz-date": now}
    names = ";".join(headers)
    canonical = "\n".join([method, path, query, *(f"{k}:{v}" for k, v in headers.items()), "", names, digest])
    scope = f"{day}/us-east-1/s3/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", now, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    signed = signature(os.environ["AWS_SECRET_ACCESS_KEY"], day, text)
    credential = f"{os.environ['AWS_ACCESS_KEY_ID']}/{scope}"
    headers["authorization"] = f"AWS4-HMAC-SHA256 Credential={credential},SignedHeaders={names},Signature={signed}"
    request = urllib.request.Request(f"{url}{path}?{query}", body or None, headers, method=method)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        sys.exit(f"{method} {path}: {error.code} {error.read().decode(errors='replace')}")


def objects(url, bucket):
    """All keys with their sizes."""
    query = {"list-type": "2"}
    while True:
        tree = xml.etree.ElementTree.fromstring(call("GET", url, f"/{bucket}", query.items()))
        space = tree.tag[: tree.tag.index("}") + 1]
        for found in tree.iter(f"{space}Contents"):
            yield found.findtext(f"{space}Key"), found.findtext(f"{space}Size")
        if tree.findtext(f"{space}IsTruncated") != "true":
            return
        query["continuation-token"] = tree.findtext(f"{space}NextContinuationToken")


def contents(file):
    with open(file, "rb") as source:
        return source.read()


def main():
    url, bucket, order, *rest = sys.argv[1:]
    match order, rest:
        case "make", []:
            call("PUT", url, f"/{bucket}")
        case "policy", [file]:
            call("PUT", url, f"/{bucket}", [("policy", "")], contents(file))
        case "objects", []:
            for key, size in objects(url, bucket):
                print(size, key)
        case "read", [key]:
            sys.stdout.buffer.write(call("GET", url, f"/{bucket}/{key}"))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
