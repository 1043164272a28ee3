"""Records in a PostgreSQL table, for `skc demo --app postgres`.

Speaks version 3 of PostgreSQL's protocol over the server's unix socket, as far as it is needed here: trust
authentication and simple queries.
"""

import os
import socket
import struct
import sys
import threading
import time

import gateway

PORT = 5432
UP_S = 0.3  # how long a client waits for a server that is not up: below the time after which it asks again
PACE_S = 0.02
ANSWER_S = 60
TURN = threading.Lock()  # one attempt at a time: each costs the server a process, also while it replays its log


class Refused(OSError):
    """The server answered with an error."""


class Session:
    """One session of the server."""

    def __init__(self, directory):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(ANSWER_S)
        try:
            self.socket.connect(os.path.join(directory, f".s.PGSQL.{PORT}"))
            self.input = self.socket.makefile("rb")
            names = b"user\0postgres\0database\0postgres\0application_name\0skc-demo\0\0"
            self.socket.sendall(struct.pack("!II", 8 + len(names), 3 << 16) + names)
            self.rows()
        except OSError:
            self.socket.close()
            raise

    def query(self, text):
        """Runs one statement; the rows of its result, each a list of texts. It is committed on return."""
        body = text.encode() + b"\0"
        self.socket.sendall(b"Q" + struct.pack("!I", 4 + len(body)) + body)
        return self.rows()

    def exactly(self, length):
        data = self.input.read(length)
        if len(data) != length:
            raise ConnectionError("the server ended the session")
        return data

    def rows(self):
        """Reads messages until the server is ready for the next query."""
        rows, error = [], None
        while True:
            kind, length = struct.unpack("!cI", self.exactly(5))
            body = self.exactly(length - 4)
            if kind == b"D":
                rows.append(fields(body))
            elif kind == b"R" and body != bytes(4):
                raise Refused("the server wants a password")
            elif kind == b"E":
                error = Refused("; ".join(part[1:].decode() for part in body.split(b"\0") if part[:1] == b"M"))
                if not rows and body.find(b"FATAL") >= 0:
                    raise error
            elif kind == b"Z":
                if error:
                    raise error
                return rows

    def append(self, identity, payload):
        # Ids and payloads of the demo's clients are letters, digits, dashes and colons; nothing else gets in.
        if not (identity + payload).replace("-", "").replace(":", "").isalnum():
            raise Refused("not a record of the demo")
        new = self.query(
            f"INSERT INTO record(id, payload) VALUES('{identity}', '{payload}') "
            "ON CONFLICT (id) DO NOTHING RETURNING sequence"
        )
        return (new or self.query(f"SELECT sequence FROM record WHERE id = '{identity}'"))[0][0]

    def close(self):
        self.input.close()
        self.socket.close()


def fields(body):
    (count,), at, texts = struct.unpack_from("!H", body), 2, []
    for _ in range(count):
        (length,) = struct.unpack_from("!i", body, at)
        texts.append(body[at + 4 : at + 4 + length].decode() if length >= 0 else "")
        at += 4 + max(length, 0)
    return texts


def connect(directory):
    """A session, as soon as the server is up: after a power cut it replays its log first."""
    end = time.monotonic() + UP_S
    while TURN.acquire(timeout=UP_S):
        try:
            return Session(directory)
        except OSError:
            if time.monotonic() >= end:
                raise
            time.sleep(PACE_S)
        finally:
            TURN.release()
    raise ConnectionError("the server is not up")


def main():
    args = gateway.arguments()
    if args.dump:
        for row in Session(args.socket).query("SELECT sequence, id, payload FROM record ORDER BY sequence"):
            print(*row)
    else:
        gateway.serve(args.listen, lambda: connect(args.socket))


if __name__ == "__main__":
    try:
        main()
    except Refused as error:
        sys.exit(f"PostgreSQL: {error}")
