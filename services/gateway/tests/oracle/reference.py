"""What the reference says of each case of cases.txt: protobuf for Python, its json_format.

Arguments: --check or --renew, the table, descriptor sets. Behind each case the table has what the reference makes of it, `= refused` or
`=` with the message's bytes and its JSON; --renew writes these lines anew, --check only looks whether they are still right.
"""

import json
import re
import sys
from pathlib import Path

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

ESCAPE = re.compile(r"⟦(?:(\d+)×(.*?)|([0-9a-f ]+))⟧")


def text_of(line):
    """The bytes that a line stands for: `⟦ef bb bf⟧` are bytes, `⟦30×[⟧` is a text so often."""
    parts, at = [], 0
    for escape in ESCAPE.finditer(line):
        parts.append(line[at : escape.start()].encode())
        count, text, octets = escape.groups()
        parts.append(bytes.fromhex(octets) if octets else text.encode() * int(count))
        at = escape.end()
    return b"".join(parts) + line[at:].encode()


def answer(message_class, text):
    message = message_class()
    try:
        json_format.Parse(text, message)
        shown = json_format.MessageToDict(message, preserving_proto_field_name=True)
    except (json_format.Error, UnicodeDecodeError):
        return "refused"
    return f"{message.SerializeToString(deterministic=True).hex() or '-'} {json.dumps(shown)}"


def main(mode, table, *descriptors):
    pool = descriptor_pool.DescriptorPool()
    known = set()
    for path in descriptors:
        for file in descriptor_pb2.FileDescriptorSet.FromString(Path(path).read_bytes()).file:
            if file.name not in known:
                known.add(file.name)
                pool.Add(file)
    before = Path(table).read_text().splitlines()
    after, cases, message_class = [], 0, None
    for line in before:
        if line.startswith("    = "):
            continue
        after.append(line)
        if line.startswith(":: "):
            message_class = message_factory.GetMessageClass(pool.FindMessageTypeByName(line[3:]))
        elif line and not line.startswith(("#", "    ")):
            cases += 1
            after.append(f"    = {answer(message_class, text_of(line))}")
    if mode == "--renew":
        Path(table).write_text("\n".join(after) + "\n")
    elif before != after:
        wrong = [f"{old}\n{new}" for old, new in zip(before, after) if old != new]
        sys.exit("cases.txt does not say what the reference says:\n" + (wrong or ["lines are missing"])[0])
    print(f"{cases} cases of JSON, as the reference reads them")


main(*sys.argv[1:])
