#!/usr/bin/env python3
"""Notes over HTTP, kept in SQLite: POST / appends the body, GET / lists what is there."""

import argparse
import sqlite3
from http.server import BaseHTTPRequestHandler, HTTPServer

BODY_MAX = 65536


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--database", required=True)
    parser.add_argument("--port", type=int, default=8080)
    args = parser.parse_args()

    db = sqlite3.connect(args.database)
    db.execute("PRAGMA synchronous = FULL")  # a note that was acknowledged is on disk, here on both machines
    db.execute("CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, body TEXT NOT NULL)")
    db.commit()

    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # a silent client must not hold the only thread

        def do_GET(self):
            rows = db.execute("SELECT id, body FROM notes ORDER BY id").fetchall()
            self.answer(200, "".join(f"{i} {body}\n" for i, body in rows))

        def do_POST(self):
            try:
                length = int(self.headers.get("Content-Length", "0"))
            except ValueError:
                length = -1
            if not 0 <= length <= BODY_MAX:
                self.answer(413, "too long\n")
                return
            body = self.rfile.read(length).decode("utf-8", "replace")
            with db:
                row = db.execute("INSERT INTO notes (body) VALUES (?)", (body,)).lastrowid
            self.answer(201, f"{row}\n")

        def answer(self, status, text):
            data = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    HTTPServer(("", args.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
