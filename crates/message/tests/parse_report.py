"""Reads a message on standard input with Python's email package and prints what it found as JSON."""

import email
import email.policy
import json
import sys

message = email.message_from_bytes(sys.stdin.buffer.read(), policy=email.policy.default)
defects = [repr(defect) for part in message.walk() for defect in part.defects]


def blocks(part):
    """The groups of fields of a delivery status, whatever its media type."""
    if part.get_content_type() == "message/delivery-status":
        return [dict(block.items()) for block in part.get_payload()]
    # Unknown to this package, which reads the first group as a header and the others as its body.
    inner = part.get_payload(0)
    rest = email.message_from_string(inner.get_payload(), policy=email.policy.default)
    return [dict(inner.items()), dict(rest.items())]


def text(part):
    kind = part.get_content_type()
    if kind in ("text/plain", "text/rfc822-headers"):
        return part.get_content()
    return part.get_payload(0).as_string()


parts = list(message.iter_parts())
print(
    json.dumps(
        {
            "header": {name: str(value) for name, value in message.items()},
            "type": message.get_content_type(),
            "report_type": message.get_param("report-type"),
            "parts": [part.get_content_type() for part in parts],
            "encodings": [part["Content-Transfer-Encoding"] for part in parts],
            "text": text(parts[0]),
            "status": blocks(parts[1]),
            "returned": text(parts[2]),
            "defects": defects,
        }
    )
)
