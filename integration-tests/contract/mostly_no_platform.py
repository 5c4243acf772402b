"""Most requests name no platform: one that does sees little of what the others made, and differs from the platform of its body."""

import schemathesis

PLATFORM = "x-platform-id"


@schemathesis.hook
def map_headers(_context, headers):
    # By the value itself, so that a seed makes the same requests again.
    if headers and sum(str(headers.get(PLATFORM, "")).encode()) % 4:
        return {name: value for name, value in headers.items() if name != PLATFORM}
    return headers
