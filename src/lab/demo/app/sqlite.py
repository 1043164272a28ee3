"""Records in one SQLite database, for `skc demo --app sqlite`."""

import os
import sqlite3
import sys
import threading

import gateway

TABLE = (
    "CREATE TABLE IF NOT EXISTS record"
    "(sequence INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, payload TEXT NOT NULL)"
)


class Database:
    """One connection to the database, shared by all threads under one lock."""

    def __init__(self, directory):
        self.lock = threading.Lock()
        self.db = sqlite3.connect(
            os.path.join(directory, "records.db"), isolation_level=None, check_same_thread=False, timeout=30
        )
        mode = self.db.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != "wal":
            sys.exit(f"the journal mode is {mode}, not wal")
        self.db.execute("PRAGMA synchronous=FULL")
        self.db.execute(TABLE)

    def append(self, identity, payload):
        with self.lock:
            try:
                known = self.db.execute("SELECT sequence FROM record WHERE id = ?", (identity,)).fetchone()
                if known:
                    return known[0]
                self.db.execute("BEGIN IMMEDIATE")
                row = self.db.execute("INSERT INTO record(id, payload) VALUES(?, ?)", (identity, payload))
                self.db.execute("COMMIT")
                return row.lastrowid
            except sqlite3.Error as error:
                print(f"{error}; what the disk holds is unknown", file=sys.stderr, flush=True)
                os._exit(3)

    def close(self):
        """A connection's end: the database stays open for the others."""

    def end(self):
        # Held for good: no thread begins another transaction on a closed database.
        self.lock.acquire()
        self.db.close()


def dump(directory):
    path = os.path.join(directory, "records.db")
    if not os.path.exists(path):
        sys.exit(f"{path} does not exist")
    db = sqlite3.connect(path, isolation_level=None)
    findings = []
    try:
        findings = [text for (text,) in db.execute("PRAGMA integrity_check") if text != "ok"]
        for row in db.execute("SELECT sequence, id, payload FROM record ORDER BY sequence"):
            print(*row)
    except sqlite3.Error as error:
        findings.append(str(error))
    if findings:
        # What could be read is printed all the same: it is not lost.
        sys.exit(f"PRAGMA integrity_check and reading all records: {'; '.join(findings[:5])}")


def main():
    args = gateway.arguments()
    if args.dump:
        dump(args.data)
    else:
        database = Database(args.data)
        gateway.serve(args.listen, lambda: database, database.end)


if __name__ == "__main__":
    main()
