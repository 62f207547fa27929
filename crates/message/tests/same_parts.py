"""Reads two messages, the first one's size in octets given as argument, and says whether a reader sees the same."""

import email
import email.policy
import sys

octets = sys.stdin.buffer.read()
size = int(sys.argv[1])


def leaves(octets):
    message = email.message_from_bytes(octets, policy=email.policy.compat32)
    return [
        (part.get_content_type(), part.get_filename(), part.get_payload(decode=True))
        for part in message.walk()
        if not part.is_multipart()
    ]


before, after = leaves(octets[:size]), leaves(octets[size:])
assert before == after, (before, after)
print(len(after))
