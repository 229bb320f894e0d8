"""The common mail as written directly, held against the same mail as the standard library writes it."""

import email
import email.policy
import random
import re
from base64 import b64decode
from dataclasses import replace
from email.header import decode_header, make_header
from email.message import EmailMessage

import pytest
import time_machine
from hypothesis import example, given, settings
from hypothesis import strategies as st

from notifications.channels import Outgoing, addresses, headers
from notifications.channels.email import checks, direct, mime
from notifications.channels.email.mime import compose, to_wire, write_by_library

MAIL = Outgoing(
    reference="0192f0c1-0000-7000-8000-000000000001",
    to="ada@example.com",
    to_name="Ada",
    from_address="hello@acme.test",
    from_name="Acme",
    subject="Your booking",
    text="Hello Ada",
    html="<p>Hello Ada</p>",
)
ENCODED_WORD = re.compile(rb"=\?utf-8\?b\?([A-Za-z0-9+/=]*)\?=")
DETERMINISTIC = settings(derandomize=True, deadline=None, max_examples=250, database=None)

WORDS = [
    *("Hello", "booking", "a", "O'Brien", "Dr.", "Doe,", '"Q"', "back\\slash", "(note)", "a@b.io", "<b>", "a;b:c"),
    *("[1]", "50%", "=C3=BC", "?", "_", "=", "From", ".", "..", "--", "--=_", "--===============12345=="),
    *("Grüße", "naïve", "œuvre", "½", "سلام", "نوبت\u200cها", "שלום", "Привет", "Ελλάδα", "日本語", "안녕", "ไทย"),
    *("नमस्ते", "🎉", "👩\u200d👩\u200d👧", "🇩🇪", "e\u0301", "\u00a0", "\u3000", "\ufe0f", "\U0001d54f"),
    *("x" * 69, "y" * 79, "z" * 200, "Ж" * 60, "漢" * 120, "🎉" * 40),
]
GAPS = [" ", " ", " ", "", "  ", ", "]
LINE_ENDS = [
    "\n",
    "\r\n",
    "\r",
    "\n\n",
    "\r\r\n",
    "\n\r",
    "\n.",
    "\r\n..\r\n",
    "\r.\r\n",
    " \n",
    "\t\r\n",
    "\n\n.\n",
    "\n\0.",
]
# Long bodies, of a kind each, so that every encoding is met: ASCII short and long, a few accents, all another script.
BLOCKS = [
    "plain text " * 6 + "\n",
    "x" * 998 + "\n",
    "y" * 3000,
    "é",
    "Grüße aus München, " * 9,
    "سلام دنیا\n" * 30,
    "\x0b\x0c\x1c\x85\u2028",
]


def phrase(draw: random.Random, longest: int) -> str:
    return "".join(draw.choice(WORDS) + draw.choice(GAPS) for _ in range(draw.randint(0, longest)))


def body(draw: random.Random) -> str:
    pieces = [draw.choice([*WORDS, *LINE_ENDS, *LINE_ENDS, *BLOCKS, " ", "\t"]) for _ in range(draw.randint(0, 25))]
    return "".join(pieces)


def corpus(number: int) -> list[Outgoing]:
    draw = random.Random(20250801)
    return [
        replace(
            MAIL,
            reference=f"m-{position}",
            to=draw.choice(["ada@example.com", "a+b@münchen.example", f"{'l' * 64}@{'d' * 60}.example", "o'b@EX.test"]),
            to_name=phrase(draw, 3),
            from_name=phrase(draw, 3),
            reply_to=draw.choice(["", "desk@acme.test"]),
            subject=draw.choice([phrase(draw, 9).strip(), phrase(draw, 2)]),
            text=draw.choice(["", body(draw), body(draw)]),
            html=draw.choice(["", body(draw), f"<p>{body(draw)}</p>"]),
            headers={"X-Booking": phrase(draw, 4).strip()},
            service_headers={
                "List-Unsubscribe": f"<https://acme.example/{'u' * draw.randint(0, 300)}>, <mailto:u@a.io>"
            },
        )
        for position in range(number)
    ]


def parse(content: bytes) -> EmailMessage:
    message = email.message_from_bytes(content, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    return message


def outcome(write, message: Outgoing) -> bytes | str | None:
    try:
        return write(message)
    except ValueError as error:
        return f"{type(error).__name__}: {error}"


def shown(message: EmailMessage) -> list[tuple[str, str]]:
    """Every header as it reads, save those of the content: `parts` looks at what they mean."""
    return sorted((name, str(value)) for name, value in message.items() if not name.startswith("Content-"))


def parts(message: EmailMessage) -> list[tuple[str, str | None, str | None]]:
    return [
        (part.get_content_type(), part.get_content_charset(), None if part.is_multipart() else part.get_content())
        for part in message.walk()
    ]


def as_given(text: str) -> str:
    """A body as it is to arrive."""
    text = re.sub(r"\r\n|\r|\n", "\n", text.replace("\0", ""))
    return (text if text.endswith("\n") else f"{text}\n").replace("\n", "\r\n")


def name_in(header: str) -> str:
    """The name in a header by the older parser, which joins encoded words as RFC 2047 says."""
    name = re.sub(r"\r\n(?=[ \t])", "", header).rpartition("<")[0].strip()
    if name.startswith('"'):
        return re.sub(r"\\(.)", r"\1", name[1:-1])
    return str(make_header(decode_header(name)))


def check_lines(content: bytes) -> None:
    """Every limit on lines, words and characters of the wire."""
    assert content.isascii()
    assert not re.search(rb"(?<!\r)\n|\r(?!\n)|\0", content)
    assert content.endswith(b"\r\n")
    assert max(map(len, to_wire(content).split(b"\r\n"))) <= 998
    head, _, _ = content.partition(b"\r\n\r\n")
    for line in head.split(b"\r\n"):
        assert line.strip()
        words = line.split()
        assert len(line) <= 78 or len(words) <= 2, line
        if b"=?" in line:
            assert len(line) <= 76, line
    for word in ENCODED_WORD.finditer(head):
        assert len(word[0]) <= 75
        b64decode(word[1], validate=True).decode()
    for part in parse(content).walk():
        if part["Content-Transfer-Encoding"] in {"quoted-printable", "base64"}:
            assert max(map(len, part.get_payload().split("\r\n"))) <= 76


def check_alike(message: Outgoing) -> str:
    """Hold both writers' mails, or refusals, against each other and against what was given; tells which it was."""
    with time_machine.travel(1_790_000_000, tick=False):
        directly, by_library = outcome(direct.write, message), outcome(write_by_library, message)
    if directly is None:
        return "unusual"
    if isinstance(directly, str):
        assert directly == by_library
        return "refused"
    assert isinstance(by_library, bytes)
    check_lines(directly)
    ours, theirs = parse(directly), parse(by_library)
    for mail in (ours, theirs):
        for part in mail.walk():
            assert not part.defects
    assert parts(ours) == parts(theirs)
    wanted = [message.text] * bool(message.text or not message.html) + [message.html] * bool(message.html)
    assert [content for *_, content in parts(ours) if content is not None] == list(map(as_given, wanted))
    for name, value in {"Subject": message.subject, **message.headers, **message.service_headers}.items():
        assert str(ours[name]) == value
        if str(theirs[name]) != value:
            # Where the standard library folds a long word it may lose a space: then it is no judge.
            del ours[name], theirs[name]
    assert shown(ours) == shown(theirs)
    raw = email.message_from_bytes(directly, policy=email.policy.compat32)
    assert name_in(raw["To"]) == addresses.clean_display_name(message.to_name)
    assert name_in(raw["From"]) == addresses.clean_display_name(message.from_name)
    assert [each.addr_spec for each in ours["To"].addresses] == [addresses.clean_email(message.to)]
    return "alike"


# The same as the standard library's


def test_a_corpus_of_mails_reads_the_same_either_way():
    outcomes = [check_alike(message) for message in corpus(500)]
    assert outcomes.count("alike") > 300
    assert outcomes.count("unusual") > 20


texts = st.text(max_size=120) | st.lists(st.sampled_from([*WORDS, *GAPS]), max_size=8).map("".join)
bodies = (
    st.text(max_size=400)
    | st.lists(st.sampled_from([*WORDS, *LINE_ENDS, *BLOCKS, " ", "\t"]), max_size=15).map("".join)
    | st.text(alphabet="a =.\t\r\n\0é", max_size=300)
)


@DETERMINISTIC
@given(subject=texts, name=texts, header=texts)
@example(subject="", name="", header="")
@example(subject=" leading", name=" spaced  out ", header="trailing ")
@example(subject="=?utf-8?q?a=0d=0aBcc:_v@z.io?= tail", name="", header="=?utf-8?q?x?=")
@example(subject="a" * 998, name='"' * 100, header="b" * 998)
@example(subject="é" * 499, name="é" * 100, header="é" + "a" * 996)
@example(subject="🎉" * 249, name="🎉" * 100, header="a 🎉" * 100)
@example(subject="a" * 69 + "   " + "b" * 80, name="", header="c" * 71 + "  " + "d" * 90)
@example(subject="word " * 199 + "end", name="a," * 50, header="x  " * 100 + "y")
def test_any_text_in_a_header_reads_the_same_either_way(subject, name, header):
    check_alike(replace(MAIL, subject=subject, to_name=name, from_name=name, headers={"X-Any": header}))


@DETERMINISTIC
@given(text=bodies, html=bodies)
@example(text="", html="")
@example(text="", html="<p>only</p>")
@example(text="only", html="")
@example(text="x" * 998, html="x" * 999)
@example(text=" \t \n" * 50 + "é", html="=\n" * 100 + "ü" + "a" * 75 + "\n" + "a" * 76 + "\n")
@example(text="a" * 74 + " \né", html="é" + "a" * 68 + "\t\n.")
@example(text="a" * 75 + "é\r\n.\r\n", html="\r\n" * 3 + "." * 200)
def test_any_body_reads_the_same_either_way(text, html):
    assert check_alike(replace(MAIL, text=text, html=html)) == "alike"


@pytest.mark.parametrize(
    "change",
    [
        {"text": "lone surrogate \ud800"},
        {"html": "lone surrogate \udc80"},
        {"subject": "lone surrogate \ud800"},
        {"to_name": "a\u202eb"},
        {"to": "a@localhost"},
        {"to": f"{'l' * 64}@{'d' * 63}.{'e' * 63}.{'f' * 60}.test"},
        {"from_address": "a@b"},
        {"reply_to": "a@b@c.io"},
        {"to": "=?utf-8?q?a?=@example.com"},
        {"reply_to": "=?utf-8?q?a?=@example.com"},
        {"from_address": "=?utf-8?q?ceo=40bank.test?=@acme.test"},
        {"message_id": "<a b@c.io>"},
        {"headers": {"X-A": "1", "x-a": "2"}},
        {"headers": {"Orig-Date": "\n"}},
        {"service_headers": {"X-A": "1", "x-a": "2"}},
        {"service_headers": {"List-Unsubscribe": "a\nb"}},
    ],
)
def test_what_one_writer_refuses_the_other_refuses_in_the_same_words(change):
    message = replace(MAIL, **change)
    refusal = outcome(write_by_library, message)
    assert isinstance(refusal, str)
    assert outcome(compose, message) == refusal


@pytest.mark.parametrize(
    "change",
    [
        {"subject": "with =?utf-8?q?an?= encoded word"},
        {"subject": " with a space before"},
        {"subject": "x" * 998},
        {"headers": {"Orig-Date": "Mon, 01 Jan 2024 00:00:00 +0000"}},
        {"headers": {"X" * 64: "é"}},
        {"message_id": "<=?utf-8?q?a?=@example.com>"},
    ],
)
def test_the_unusual_is_left_to_the_standard_library_and_keeps_to_the_limits(change):
    message = replace(MAIL, **change)
    assert direct.write(message) is None
    content = compose(message).content
    assert content.isascii()
    assert max(map(len, content.split(b"\r\n"))) <= 998
    if "subject" in change and "=?" not in change["subject"]:
        assert str(parse(content)["Subject"]) == change["subject"].lstrip()


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"text": ""},
        {"html": ""},
        {"subject": ""},
        {"subject": "یادآوری نوبت\u200cها 🎉", "to_name": "نوبت\u200cها", "text": "سلام\u200c\n" * 50},
        {"to_name": 'Doe, "J" (x)', "reply_to": "desk@acme.test"},
        {"service_headers": {"List-Unsubscribe": f"<https://a.test/{'u' * 300}>"}},
        {"html": "<p>" + "long " * 2000},
    ],
)
def test_the_common_is_written_directly(monkeypatch, change):
    monkeypatch.setattr(mime, "write_by_library", lambda _: pytest.fail("not written directly"))
    assert compose(replace(MAIL, **change)).content


@pytest.mark.parametrize("write", [direct.write, write_by_library])
@pytest.mark.parametrize(
    "name",
    [
        f"{'x' * 69} ceo@bank.test",
        f"{'x' * 69} <b> ceo@bank.test, v@z.io",
        f"{'a ' * 36}ceo@bank.test, v@z.io",
        f'{"x" * 60} " <v@z.io>, "',
        f"{'x' * 60} \\ <v@z.io>, \\",
        f"ü{'x' * 69}, v@z.io",
    ],
)
def test_no_name_however_it_is_folded_becomes_an_address(write, name):
    mail = parse(write(replace(MAIL, from_name=name, to_name=name)))
    assert [each.addr_spec for each in mail["From"].addresses] == [MAIL.from_address]
    assert [each.addr_spec for each in mail["To"].addresses] == [MAIL.to]


@pytest.mark.parametrize("write", [direct.write, write_by_library])
def test_html_alone_says_that_it_is_mime(write):
    mail = parse(write(replace(MAIL, text="")))
    assert mail["MIME-Version"] == "1.0"
    assert [kind for kind, *_ in parts(mail)] == ["multipart/alternative", "text/html"]


# The bytes


def test_an_ascii_mail_is_written_as_anybody_would():
    with time_machine.travel(0, tick=False):
        content = compose(replace(MAIL, html="", to_name="Doe, Ada")).content
    assert content == (
        b"Subject: Your booking\r\n"
        b"From: Acme <hello@acme.test>\r\n"
        b'To: "Doe, Ada" <ada@example.com>\r\n'
        b"Date: Thu, 01 Jan 1970 00:00:00 +0000\r\n"
        b"Message-ID: <0192f0c1-0000-7000-8000-000000000001@acme.test>\r\n"
        b"Auto-Submitted: auto-generated\r\n"
        b"MIME-Version: 1.0\r\n"
        b'Content-Type: text/plain; charset="utf-8"\r\n'
        b"Content-Transfer-Encoding: 7bit\r\n"
        b"\r\n"
        b"Hello Ada\r\n"
    )


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("short lines\n" * 100, "7bit"),
        ("x" * 78, "7bit"),
        ("x" * 79, "quoted-printable"),
        ("a few Ümläuts in a row of words\n" * 9, "quoted-printable"),
        ("سلام دنیا\n", "base64"),
        ("漢字かな\n" * 20, "base64"),
    ],
)
def test_a_body_is_encoded_for_a_7_bit_wire_and_no_longer_than_needed(text, encoding):
    content = compose(replace(MAIL, text=text, html="")).content
    assert parse(content)["Content-Transfer-Encoding"] == encoding
    check_lines(content)


def test_a_boundary_that_a_body_has_is_not_used(monkeypatch):
    taken, free = b"\x11" * 12, b"\x22" * 12
    monkeypatch.setattr(direct.os, "urandom", _drawn(taken, free))
    content = compose(replace(MAIL, text=f"a\n--=_{taken.hex()}--\nb", html="<p>h</p>")).content
    assert parse(content).get_boundary() == f"=_{free.hex()}"
    assert parse(content).get_body(("plain",)).get_content() == f"a\r\n--=_{taken.hex()}--\r\nb\r\n"


def _drawn(*values: bytes):
    left = list(values)
    return lambda _: left.pop(0)


def test_boundaries_differ_from_mail_to_mail():
    assert len({parse(compose(MAIL).content).get_boundary() for _ in range(50)}) == 50


def test_the_date_goes_on():
    with time_machine.travel(1_000_000_000, tick=False) as clock:
        first = parse(compose(MAIL).content)["Date"].datetime
        clock.shift(1)
        second = parse(compose(MAIL).content)["Date"].datetime
    assert (first.timestamp(), second.timestamp()) == (1_000_000_000, 1_000_000_001)
    assert first.utcoffset().total_seconds() == 0


SMUGGLED = "MAIL FROM:<ceo@bank.test>"


@pytest.mark.parametrize(
    "end",
    ["\n.\n", "\n.\r\n", "\r.\r", "\r.\r\n", "\r\n.\r", "\r\n.\n", "\r\n.\r\n", "\r\n\x00.\r\n", "\n\x00\r.\r\x00\n"],
    ids=repr,
)
@pytest.mark.parametrize("part", ["text", "html"])
@pytest.mark.parametrize("more", ["", "é", "é" * 99, "x" * 999], ids=["7bit", "few accents", "accents", "long"])
def test_no_body_in_any_encoding_ends_the_mail_early(part, end, more):
    hostile = f"{more}{end}{SMUGGLED}{end}DATA{end}.{more}"
    content = direct.write(replace(MAIL, **{part: hostile}))
    assert content is not None
    wire = to_wire(content)
    assert wire.count(b"\r\n.\r\n") == 1
    assert wire.endswith(b"\r\n.\r\n")
    assert not re.search(rb"(?<!\r)\n|\r(?!\n)|\0", wire)
    kind = {"text": "plain"}.get(part, part)
    assert parse(content).get_body((kind,)).get_content() == as_given(hostile)


# The checks


plain_addresses = st.from_regex(r"[a-zA-Z0-9.!%+_'=?-]{1,8}@[a-zA-Z0-9.-]{1,12}", fullmatch=True)
domains = st.sampled_from(
    ["example.com", "EXAMPLE.Com", "münchen.example", "xn--a.test", "b..io", "-b.io", "b.io ", "local"]
)
# Twelve characters here, 44 in the A-label.
LONG_AS_A_LABEL = "".join(chr(0x20000 + number * 3137) for number in range(12))
any_address = (
    plain_addresses
    | st.text(max_size=30)
    | st.builds("{}@{}".format, st.text(alphabet='ab.%!"<, é', max_size=6), domains)
    | st.builds(
        lambda local, label: f"{'l' * local}@{'d' * label}.{'e' * label}.test", st.integers(60, 66), st.integers(1, 64)
    )
)


@settings(DETERMINISTIC, max_examples=1500)
@given(value=any_address)
@example(value="a@b.io ")
@example(value=" a@b.io")
@example(value="a@@b.io")
@example(value="a@b@c.io")
@example(value="a@b.io@")
@example(value="a\n@b.io")
@example(value="a@b.io\n")
@example(value=f"{'l' * 64}@{'d' * 63}.test")
@example(value=f"{'l' * 65}@b.test")
@example(value=f"l@{'ü' * 40}.{'ü' * 40}.test")
@example(value=f"{'l' * 64}@{'.'.join([LONG_AS_A_LABEL] * 4)}.io")
def test_the_check_of_an_address_is_the_one_of_all_addresses(value):
    original = outcome(addresses.clean_email, value)
    for _ in range(2):
        found = outcome(checks.clean_email, value)
        assert found == original or (found.startswith("InvalidAddress") and "=?" in value)


@settings(DETERMINISTIC, max_examples=1000)
@given(value=st.text(max_size=30) | st.text(alphabet="a =?\t\n\u00a0\u200b\u200c\u202e\u2028é", max_size=110))
@example(value="a" * 101)
@example(value="a" * 99 + " b")
@example(value="\ud800")
@example(value="a" * 250)
@example(value="é" * 499)
@example(value="é" * 500)
@example(value="a" * 998)
@example(value="a" * 999)
@example(value="🎉" * 250)
def test_the_checks_of_names_and_values_are_the_ones_of_all(value):
    assert outcome(checks.clean_display_name, value) == outcome(addresses.clean_display_name, value)

    def ours(text: str) -> None:
        return checks.check_value("Subject", text)

    def originals(text: str) -> None:
        return headers.check_value("Subject", text)

    assert outcome(ours, value) == outcome(originals, value)


header_names = st.sampled_from(
    ["X-A", "x-a", "X-B", "Bcc", "From", "List-Unsubscribe", "X-A: y\r\nBcc", "", "é", "X" * 65]
)


@DETERMINISTIC
@given(given=st.dictionaries(header_names, st.sampled_from(["", "v", "é", "a\nb", "a" * 999]), max_size=3))
def test_the_checks_of_headers_are_the_ones_of_all(given):
    for service, original in ((False, headers.check_headers), (True, headers.check_service_headers)):
        for _ in range(2):
            assert outcome(lambda each, service=service: checks.check_headers(each, service=service), given) == outcome(
                original, given
            )


def test_what_is_remembered_is_bounded():
    for remembered in (checks._clean_domain, checks._check_name, direct.sender_header, direct.date_header):
        assert 0 < remembered.cache_parameters()["maxsize"] <= 4096
