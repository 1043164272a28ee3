"""The line protocol of `skc demo`'s clients in front of a store.

`sync K` is answered with `ok` (every append is a transaction here), `append ID PAYLOAD` with `ok SEQUENCE`, after
the store's COMMIT returned. A client that got no answer sends the record again under the same id, and gets the
sequence that the id has already.
"""

import argparse
import os
import signal
import socket
import sys
import threading

LINE_MAX = 4096
IDLE_S = 60  # a connection without a request for so long is closed: its client is gone


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True, help="directory of the application")
    parser.add_argument("--listen", help="serve clients at this ADDRESS:PORT")
    parser.add_argument("--socket", help="directory of the database server's socket")
    parser.add_argument("--dump", action="store_true", help="check the data, print `sequence id payload` lines")
    return parser.parse_args()


def converse(connection, connect):
    connection.settimeout(IDLE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    store = None
    try:
        with connection, connection.makefile("rb") as lines:
            store = connect()
            while True:
                line = lines.readline(LINE_MAX)
                words = line.decode("ascii", "replace").split()
                if line.endswith(b"\n") and len(words) == 2 and words[0] == "sync":
                    answer = "ok\n"
                elif line.endswith(b"\n") and len(words) == 3 and words[0] == "append":
                    answer = f"ok {store.append(words[1], words[2])}\n"
                else:
                    return
                connection.sendall(answer.encode())
    except OSError:
        pass  # the end of a connection, orderly or not, concerns its client only
    finally:
        if store:
            store.close()


def serve(listen, connect, end=lambda: None):
    """Serves for ever; `connect` gives each connection its store, `end` runs when SIGTERM asks to stop."""

    def terminate(*_):
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, terminate)
    host, port = listen.rsplit(":", 1)
    try:
        with socket.create_server((host, int(port)), backlog=128) as server:
            print(f"listening on {listen}", file=sys.stderr, flush=True)
            while True:
                connection, _ = server.accept()
                threading.Thread(target=converse, args=(connection, connect), daemon=True).start()
    except SystemExit:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end()
        # Threads that still talk to clients must not keep a stopped service alive.
        os._exit(0)
