"""Stands where the Rego child stands and answers evaluations as a file says: `SHAPE.json FD`.

{"frames": [text, ...], "then": "stay" | "exit"}; `$ID` in a text is the request's id. A frame that
starts with `raw:` is sent as those hex bytes, without a length.
"""

import json
import socket
import struct
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    shape_file, descriptor = Path(sys.argv[1]), int(sys.argv[2])
    with socket.socket(fileno=descriptor) as connection:
        while True:
            head = connection.recv(4, socket.MSG_WAITALL)
            if len(head) < 4:
                return
            body = connection.recv(struct.unpack(">I", head)[0], socket.MSG_WAITALL)
            request = json.loads(body)
            if request["op"] != "evaluate":
                send(connection, json.dumps({"id": request["id"]}))
                continue
            if not answer(connection, json.loads(shape_file.read_text()), request["id"]):
                return


def answer(connection: socket.socket, shape: dict[str, Any], request: int) -> bool:
    for text in shape["frames"]:
        if text.startswith("raw:"):
            connection.sendall(bytes.fromhex(text.removeprefix("raw:")))
        else:
            send(connection, text.replace("$ID", str(request)))
    return bool(shape["then"] == "stay")


def send(connection: socket.socket, text: str) -> None:
    connection.sendall(struct.pack(">I", len(text.encode())) + text.encode())


if __name__ == "__main__":
    main()
