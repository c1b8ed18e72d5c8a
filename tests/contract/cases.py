"""The recorded cases, and how an answer is compared with them (tests/conformance/README.md)."""

import base64
import collections
import hashlib
import hmac
import itertools
import json
import pathlib
import re
import urllib.parse

RECORDED = pathlib.Path(__file__).resolve().parents[1] / "conformance"

# What the endpoint does not send, so that clients and proxies between must not see it either.
FORBIDDEN_HEADERS = {
    "allow", "content-encoding", "content-security-policy", "etag", "location", "retry-after", "set-cookie", "vary",
    "www-authenticate", "x-frame-options",
}

Answer = collections.namedtuple("Answer", "status headers body")
Answer.__doc__ = "An HTTP response: an int, a dict of lower-case names, a str."


# An encoder that is kept encodes in half of the time.
canonical = json.JSONEncoder(sort_keys=True).encode


def recorded_cases():
    return [json.loads(line) for line in (RECORDED / "cases.jsonl").read_text().splitlines()]


def parse(body):
    """A body as JSON, or as the str that it is. Refuses a key that is repeated."""
    def pairs(items):
        if len(dict(items)) != len(items):
            raise ValueError("a key is repeated")
        return dict(items)

    return json.loads(body, object_pairs_hook=pairs) if body else ""


def parse_if_json(body):
    """The same, and an explanation where the body is anything else: what stands in front of the endpoint answers in HTML."""
    try:
        return parse(body)
    except ValueError as error:
        return f"{error}: {body}"


def same(one, other):
    """Equal as JSON: to Python 1 equals 1.0 and true, to clients it does not."""
    return one == other and canonical(one) == canonical(other)


def head_complaint(expectation, answer):
    """What is wrong with status and headers; None if nothing is."""
    if answer.status != expectation["status"]:
        return f"status {answer.status} instead of {expectation['status']}"
    for name, value in expectation["headers"].items():
        if answer.headers.get(name) != value:
            return f"header {name}: {answer.headers.get(name)!r} instead of {value!r}"
    for name in answer.headers.keys() - expectation["headers"].keys():
        if name in FORBIDDEN_HEADERS or name.startswith("access-control-"):
            return f"header {name}: {answer.headers[name]!r} came along"
    return None


def body_complaint(case, expected, answered):
    """What is wrong with a parsed body; None if nothing is."""
    if case.get("free_error") and isinstance(answered, dict) and answered.get("error"):
        answered = {**answered, "error": expected["error"]}
    if same(expected, answered):
        return None
    pages = users_of(expected), users_of(answered)
    if all(pages):
        # Of a long list only the place where it becomes another.
        alike = sum(1 for _ in itertools.takewhile(lambda users: same(*users), zip(*pages)))
        expected, answered = (
            {**body, "users": [f"{alike} users alike", *page[alike:alike + 1], f"of {len(page)}"]}
            for body, page in zip((expected, answered), pages)
        )
    return f"body {short(answered)}\n    instead of {short(expected)}"


def short(body):
    text = json.dumps(body, ensure_ascii=False)
    return text if len(text) <= 400 else f"{text[:400]}... ({len(text)} characters)"


def complaint(case, answer):
    """What is wrong with the function's answer: it has to be one of those that the contract accepts."""
    complaints = []
    for expectation in [case["expect"], *case.get("tolerated", [])]:
        found = head_complaint(expectation, answer)
        found = found or body_complaint(case, expectation["body"], parse_if_json(answer.body))
        if not found:
            return None
        complaints.append(found)
    return "; or ".join(complaints)


def complaint_of_synapse(case, answer):
    """What differs between Synapse's answer and the one that was recorded from it.

    Where the contract departs from Synapse, the recording says of Synapse's answer the status, the errcode and a note.
    The note is the text of the error, or what is different about the list.
    """
    answered = parse_if_json(answer.body)
    synapse = case.get("synapse")
    if not synapse:
        return head_complaint(case["expect"], answer) or list_complaint(case, answered)
    if answer.status != synapse["status"]:
        return f"status {answer.status} instead of {synapse['status']}: {short(answered)}"
    if "errcode" in synapse:
        expected = {"errcode": synapse["errcode"], "error": synapse["note"]}
        answered = {name: answered.get(name) for name in expected} if isinstance(answered, dict) else answered
        return body_complaint(case, expected, answered)
    if "skip" in case:
        return None
    return head_complaint({**case["expect"], "status": synapse["status"]}, answer) or noted_complaint(case, answered)


def noted_complaint(case, answered):
    """The same for a list from which the contract departs."""
    note, expected = case["synapse"]["note"], case["expect"]["body"]
    answered = answered if isinstance(answered, dict) else {}
    numbers = {
        "total": answered.get("total"), "rows returned:": len(users_of(answered)), "next_token": answered.get("next_token"),
    }
    for name, number in numbers.items():
        noted = re.search(rf"\b{name} (\d+)", note)
        if noted and int(noted[1]) != number:
            return f"{name} {number} instead of {noted[1]}"
    if not set(case["departures"]) <= {"D6", "D9"}:
        return None
    if "null media_length sorts" in note:
        # A user without a length is at another place, and so may others be on another page.
        return body_complaint(case, *({**body, "users": len(users_of(body))} for body in (expected, answered)))
    # The list as the contract has it but for lengths of null and the order of equal sort keys.
    users = [{**user, "media_length": 0} if user.get("media_length", 0) is None else user for user in users_of(answered)]
    return list_complaint(case, {**answered, "users": users})


def list_complaint(case, answered):
    """Compares with what the contract expects, but for the order of equal sort keys: Synapse leaves that open (D9)."""
    expected = case["expect"]["body"]
    pages = users_of(expected), users_of(answered)
    if pages[0] and equal_up_to_ties(*pages, sort_key(case), is_whole=len(pages[0]) == expected["total"]):
        answered = {**answered, "users": expected["users"]}
    return body_complaint(case, expected, answered)


def users_of(body):
    users = body.get("users") if isinstance(body, dict) else None
    return users if isinstance(users, list) else []


def sort_key(case):
    query = urllib.parse.parse_qs(case["query"] or "")
    return query.get("order_by", ["user_id"])[0]


def equal_up_to_ties(expected, answered, key, is_whole):
    """Whether two pages are equal but for users whose sort keys are equal.

    Those may have changed places, at the ends of a page that is not the whole list also with users outside of it.
    """
    def groups(page):
        return [list(users) for _, users in itertools.groupby(page, lambda user: user.get(key))]

    def shape(page):
        return [(users[0].get(key), len(users)) for users in groups(page)]

    if not same(shape(expected), shape(answered)):
        return False
    last = len(groups(expected)) - 1
    for position, (ours, theirs) in enumerate(zip(groups(expected), groups(answered))):
        # A user_id has no equal.
        others_may_come = not is_whole and key != "user_id" and position in (0, last)
        known = {user["user_id"]: user for user in ours}
        for user in theirs:
            recorded = known.get(user.get("user_id"))
            if not (same(recorded, user) if recorded else others_may_come):
                return False
    return True


def for_synapse(case, macaroon_secret):
    """The case as this Synapse has to get it.

    Synapse recognises the guest macaroons that it has signed itself. Those that the recording server signed, and
    recognised, need the signature of this one.
    """
    headers = [
        [name, re.sub(r"(?<=Bearer )MDA\S+", lambda token: signed(token[0], macaroon_secret), value)]
        if "D8" in case.get("departures", []) else [name, value]
        for name, value in case["headers"]
    ]
    return {**case, "headers": headers}


def signed(token, secret):
    """A macaroon of version 1 with another signature: packets of four hexadecimal digits for the length, a name, a space,
    a value and a line feed. Each HMAC is the key of the next one."""
    data, head, position = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)), b"", 0
    signature = hmac.digest(b"macaroons-key-generator", secret.encode(), hashlib.sha256)
    while position < len(data):
        packet = data[position:position + int(data[position:position + 4], 16)]
        position += len(packet)
        name, _, value = packet[4:-1].partition(b" ")
        if name == b"signature":
            break
        if name in (b"identifier", b"cid"):
            signature = hmac.digest(signature, value, hashlib.sha256)
        head += packet
    last = b"signature " + signature + b"\n"
    return base64.urlsafe_b64encode(head + b"%04x" % (len(last) + 4) + last).rstrip(b"=").decode()
