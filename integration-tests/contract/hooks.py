"""What is left out of most requests, so that the rest of them is looked at: a platform (who names one sees little of what the others
made, and differs from the platform of its body), and a key or an etag in a header beside another one in body or query."""

import zlib

import schemathesis


@schemathesis.hook
def before_call(_context, case, _kwargs):
    for name in ("x-platform-id", "Idempotency-Key", "If-Match"):
        # By the value itself, so that a seed makes the same requests again.
        if name in case.headers and zlib.crc32(str(case.headers[name]).encode()) % 4:
            del case.headers[name]
