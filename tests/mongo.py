"""A stand-in for a server of MongoDB: its protocol and the stages that the reader asks for

It is none: no real one comes from Debian or PyPI. PyMongo itself talks to it, over a socket, with
SCRAM; what it answers is written from MongoDB's manual. Documents are kept in memory.
"""

import base64
import functools
import hashlib
import hmac
import os
import socketserver
import struct
import threading
from contextlib import contextmanager
from datetime import datetime

import bson
from bson.codec_options import CodecOptions

USER = "reader"
_MESSAGE, _QUERY, _REPLY = 2013, 2004, 1
_TYPES = {bool: "bool", float: "double", str: "string", bytes: "binData", dict: "object"}
_TYPES |= {list: "array", datetime: "date", type(None): "null", bson.Int64: "long"}
_TYPES |= {bson.ObjectId: "objectId", bson.Decimal128: "decimal", bson.Binary: "binData"}
_TYPES |= {bson.Regex: "regex"}
_MISSING = object()


def type_of(value) -> str:
    "As `$type` names it"
    if value is _MISSING:
        return "missing"
    if type(value) is int:
        return "int" if -(2**31) <= value < 2**31 else "long"
    return _TYPES[type(value)]


def at(document, path: str):
    "What `$path` is in an expression: of an array that of each element that has it"
    name, _, rest = path.partition(".")
    if isinstance(document, list):
        found = [at(d, path) for d in document]
        return [f for f in found if f is not _MISSING]
    if not isinstance(document, dict) or name not in document:
        return _MISSING
    return at(document[name], rest) if rest else document[name]


def _key(value):
    "By which values are in order: numbers before texts before ids before times"
    kind = type_of(value)
    if kind in ("int", "long", "double"):
        return 1, value
    if kind == "decimal":
        return 1, float(value.to_decimal())
    order = {"missing": 0, "null": 0, "string": 2, "objectId": 3, "bool": 4, "date": 5}
    return order[kind], 0 if order[kind] == 0 else value.encode() if kind == "string" else value


_COMPARED = {
    "$gte": lambda a, b: a >= b,
    "$lt": lambda a, b: a < b,
    "$lte": lambda a, b: a <= b,
}


def matches(document, asked) -> bool:
    for path, wanted in asked.items():
        if path in ("$or", "$and"):
            fits = (any if path == "$or" else all)(matches(document, each) for each in wanted)
        elif not isinstance(wanted, dict):
            assert wanted is None, wanted
            fits = at(document, path) in (_MISSING, None)
        elif "$in" in wanted:
            fits = at(document, path) in wanted["$in"]
        else:
            value = _key(at(document, path))
            bounds = [(_COMPARED[op], _key(bound)) for op, bound in wanted.items()]
            fits = all(value[0] == bound[0] and test(value, bound) for test, bound in bounds)
        if not fits:
            return False
    return True


def _grouped(documents, asked):
    if not documents:
        return []
    found = {"_id": asked.pop("_id")}
    for name, told in asked.items():
        path = told["$addToSet"]["$type"].removeprefix("$")
        found[name] = sorted({type_of(at(d, path)) for d in documents})
    return [found]


def _bucketed(documents, asked):
    "Ranges of about equal size, whose ends are values; only equal ones crowd"
    path = asked["groupBy"].removeprefix("$")
    values = sorted((at(d, path) for d in documents), key=_key)
    size = max(1, round(len(values) / asked["buckets"]))
    buckets, start = [], 0
    while start < len(values):
        stop = min(start + size, len(values))
        while stop < len(values) and _key(values[stop]) == _key(values[stop - 1]):
            stop += 1
        ends = {"min": values[start], "max": values[min(stop, len(values) - 1)]}
        buckets.append({"_id": ends, "count": stop - start})
        start = stop
    return buckets


def _projected(document, asked):
    found = {n: at(document, p.removeprefix("$")) for n, p in asked.items() if n != "_id"}
    return {n: v for n, v in found.items() if v is not _MISSING}


_STAGES = {
    "$match": lambda found, asked: [d for d in found if matches(d, asked)],
    "$limit": lambda found, asked: found[:asked],
    "$count": lambda found, asked: [{asked: len(found)}] if found else [],
    "$project": lambda found, asked: [_projected(d, asked) for d in found],
    "$group": _grouped,
    "$bucketAuto": _bucketed,
}


class Refused(Exception):
    "A code of MongoDB, and what it says"


class Server(socketserver.ThreadingTCPServer):
    "Documents by collection of the database `shop`, for one user with a password, or for all"

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, password: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Connection)
        self.password = password
        self.collections: dict[str, list[dict]] = {}
        self.cursors: dict[int, list[dict]] = {}
        self.asked: list[dict] = []  # commands but those of the handshake
        self.sent = 0  # documents
        self.dies_after: int | None = None  # documents, then it hangs up

    @property
    def uri(self) -> str:
        user = f"{USER}@" if self.password else ""
        return f"mongodb://{user}127.0.0.1:{self.server_address[1]}/shop"

    def __call__(self, collection: str, *documents: dict) -> None:
        "Put documents into a collection; they come as BSON has them"
        mine = self.collections.setdefault(collection, [])
        for document in documents:
            whole = {"_id": bson.ObjectId()} | document
            mine.append(_decoded(bson.encode(whole)))


def _decoded(data: bytes) -> dict:
    return bson.decode(data, CodecOptions(tz_aware=False))


class Connection(socketserver.StreamRequestHandler):
    def setup(self) -> None:
        super().setup()
        self.known = self.server.password is None
        self.scram = None

    def handle(self) -> None:
        while head := self.rfile.read(16):
            length, number, _, kind = struct.unpack("<iiii", head)
            body = self.rfile.read(length - 16)
            if kind == _QUERY:  # the first of a connection
                asked = _decoded(body[body.index(b"\0", 4) + 9 :])
                reply = struct.pack("<iqii", 8, 0, 0, 1) + bson.encode(self.answered(asked))
                self.send(number, _REPLY, reply)
                continue
            assert kind == _MESSAGE and body[4] == 0, "one section, of one document"
            answer = self.answered(_decoded(body[5:]))
            batch = answer.get("cursor", {})
            self.server.sent += len(batch.get("firstBatch", batch.get("nextBatch", ())))
            if self.server.dies_after is not None and self.server.sent > self.server.dies_after:
                return
            self.send(number, _MESSAGE, b"\0\0\0\0\0" + bson.encode(answer))

    def send(self, number: int, kind: int, body: bytes) -> None:
        self.wfile.write(struct.pack("<iiii", 16 + len(body), 0, number, kind) + body)

    def answered(self, asked: dict) -> dict:
        name = next(iter(asked))
        try:
            if name.lower() in ("hello", "ismaster", "ping", "endsessions", "killcursors"):
                return _HELLO | {"ok": 1.0}
            if name.startswith("sasl"):
                return getattr(self, name)(asked) | {"ok": 1.0}
            if not self.known:
                raise Refused(13, f"command {name} requires authentication")
            self.server.asked.append(asked)
            return getattr(self, name)(asked) | {"ok": 1.0}
        except Refused as e:
            code, said = e.args
            return {"ok": 0.0, "errmsg": said, "code": code, "codeName": "Refused"}

    def listCollections(self, asked: dict) -> dict:
        found = [{"name": n, "type": "collection"} for n in self.server.collections]
        return {"cursor": {"id": 0, "ns": "shop.$cmd.listCollections", "firstBatch": found}}

    def aggregate(self, asked: dict) -> dict:
        found = self.server.collections.get(asked["aggregate"], [])
        for stage in asked["pipeline"]:
            ((name, told),) = stage.items()
            found = _STAGES[name](found, told)
        first, rest = found[:101], found[101:]
        number = self.server.cursors and max(self.server.cursors) + 1 or 1
        if rest:
            self.server.cursors[number] = rest
        of = {"id": bson.Int64(number if rest else 0), "ns": f"shop.{asked['aggregate']}"}
        return {"cursor": of | {"firstBatch": first}}

    def getMore(self, asked: dict) -> dict:
        number = asked["getMore"]
        if number not in self.server.cursors:
            raise Refused(43, f"cursor id {number} not found")
        rest = self.server.cursors.pop(number)
        size = asked.get("batchSize", 1000)
        if rest[size:]:
            self.server.cursors[number] = rest[size:]
        of = {"id": bson.Int64(number if rest[size:] else 0), "ns": f"shop.{asked['collection']}"}
        return {"cursor": of | {"nextBatch": rest[:size]}}

    def saslStart(self, asked: dict) -> dict:
        if asked["mechanism"] != "SCRAM-SHA-256":
            raise Refused(2, f"{asked['mechanism']} is not spoken here")
        bare = asked["payload"].decode().removeprefix("n,,")
        told = dict(part.split("=", 1) for part in bare.split(","))
        nonce = told["r"] + base64.b64encode(os.urandom(12)).decode()
        salt = os.urandom(28)
        first = f"r={nonce},s={base64.b64encode(salt).decode()},i=4096"
        self.scram = told["n"], salt, f"{bare},{first}"
        return {"conversationId": 1, "done": False, "payload": first.encode()}

    def saslContinue(self, asked: dict) -> dict:
        "RFC 5802, section 3; a final empty message of the client ends it"
        if not asked["payload"]:
            return {"conversationId": 1, "done": True, "payload": b""}
        user, salt, said = self.scram
        without, _, proof = asked["payload"].decode().rpartition(",p=")
        sha = functools.partial(hmac.digest, digest="sha256")
        password = (self.server.password or "").encode()
        salted = hashlib.pbkdf2_hmac("sha256", password, salt, 4096)
        message = f"{said},{without}".encode()
        client = sha(salted, b"Client Key")
        signature = sha(hashlib.sha256(client).digest(), message)
        wanted = bytes(a ^ b for a, b in zip(client, signature, strict=True))
        if user != USER or not hmac.compare_digest(wanted, base64.b64decode(proof)):
            raise Refused(18, "Authentication failed.")
        self.known = True
        final = base64.b64encode(sha(sha(salted, b"Server Key"), message))
        return {"conversationId": 1, "done": False, "payload": b"v=" + final}


_HELLO = {
    "helloOk": True,
    "isWritablePrimary": True,
    "ismaster": True,
    "maxBsonObjectSize": 2**24,
    "maxMessageSizeBytes": 48_000_000,
    "maxWriteBatchSize": 100_000,
    "logicalSessionTimeoutMinutes": 30,
    "minWireVersion": 0,
    "maxWireVersion": 21,
    "readOnly": False,
    "saslSupportedMechs": ["SCRAM-SHA-256"],
}


@contextmanager
def mongodb(password: str | None = None):
    "The stand-in, on a port of its own"
    with Server(password) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}).start()
        try:
            yield server
        finally:
            server.shutdown()
