"""What a sender may put into the head of a mail."""

import pytest

from notifications.channels.headers import (
    InvalidHeader,
    check_attachment_name,
    check_header,
    check_headers,
    check_service_headers,
    check_value,
)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Booking", "42"),
        ("In-Reply-To", "<a@b.io>"),
        ("References", "<a@b.io> <c@d.io>"),
        ("Precedence", "bulk"),
        ("X-T", "Grüße 🎉"),
        ("X-T", ""),
        ("X" * 64, "a" * 998),
    ],
)
def test_an_ordinary_header_passes(name, value):
    check_headers({name: value})
    check_service_headers({name: value})


RESERVED = [
    "From",
    "To",
    "Cc",
    "Bcc",
    "Sender",
    "Reply-To",
    "Subject",
    "Return-Path",
    "Date",
    "Message-ID",
    "Received",
    "Authentication-Results",
    "DKIM-Signature",
    "ARC-Seal",
    "MIME-Version",
    "Content-Type",
    "Content-Transfer-Encoding",
    "Content-Disposition",
    "List-Unsubscribe",
    "List-Unsubscribe-Post",
    "X-SES-CONFIGURATION-SET",
    "X-SMTPAPI",
    "X-PM-Message-Stream",
    "X-PM-Tag",
    "X-Mailgun-Variables",
    "Resent-To",
    "Resent-Bcc",
    "Auto-Submitted",
    "Disposition-Notification-To",
    "X-MC-Tags",
]


@pytest.mark.parametrize(
    "spelling", [str, str.lower, str.upper, str.swapcase], ids=["as is", "lower", "upper", "swapped"]
)
@pytest.mark.parametrize("name", RESERVED)
def test_a_header_the_service_answers_for_is_refused(name, spelling):
    with pytest.raises(InvalidHeader):
        check_header(spelling(name), "x")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "X T",
        "X-T:",
        "X-T: y\r\nBcc",
        "X-T\n",
        "\nX-T",
        "X_T",
        "X-Ü",
        "Х-T",
        "X-T\x00",
        "X" * 65,
        "Bcc ",
        " Bcc",
        "Bcc\t",
    ],
)
def test_a_header_name_is_letters_digits_and_hyphens(name):
    with pytest.raises(InvalidHeader):
        check_header(name, "x")
    with pytest.raises(InvalidHeader):
        check_service_headers({name: "x"})


@pytest.mark.parametrize(
    "value",
    [
        "a\r\nBcc: v@z.io",
        "a\r\n b",
        "a\nb",
        "a\rb",
        "a\n",
        "a\x00b",
        "a\x0bb",
        "a\x0cb",
        "a\x1bb",
        "a\x7fb",
        "a\x85b",
        "a\u2028b",
        "a\u2029b",
        "a\ud800b",
        "a" * 999,
        "ü" * 500,
    ],
)
def test_a_header_value_is_one_line(value):
    with pytest.raises(InvalidHeader):
        check_value("Subject", value)
    with pytest.raises(InvalidHeader):
        check_header("X-T", value)
    with pytest.raises(InvalidHeader):
        check_service_headers({"List-Unsubscribe": value})


def test_a_header_is_given_once():
    with pytest.raises(InvalidHeader):
        check_headers({"X-T": "a", "x-t": "b"})


def test_the_service_may_set_the_unsubscribe_headers_and_no_other_reserved_one():
    check_service_headers(
        {"List-Unsubscribe": "<https://a.test/u>", "List-Unsubscribe-Post": "List-Unsubscribe=One-Click"}
    )
    with pytest.raises(InvalidHeader):
        check_service_headers({"Bcc": "v@z.io"})


@pytest.mark.parametrize("name", ["invite.ics", "Rechnung März 2026.pdf", "صورتحساب.pdf", "a" * 200])
def test_an_ordinary_file_name_passes(name):
    check_attachment_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        ".",
        "..",
        ".htaccess",
        "../a",
        "a/b",
        "a\\b",
        "C:\\a",
        "a\r\nb",
        "a\nb",
        "a\x00.pdf",
        "a\x1b",
        "a\x85",
        "invoice\u202efdp.exe",
        "a\u2066b",
        "a\u2028b",
        "a" * 201,
        "\ud800",
    ],
)
def test_a_file_name_that_leads_astray_is_refused(name):
    with pytest.raises(InvalidHeader):
        check_attachment_name(name)
