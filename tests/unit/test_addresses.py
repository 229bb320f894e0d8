"""Addresses in one spelling, with nothing hidden in them."""

import pytest

from notifications.channels.addresses import (
    InvalidAddress,
    clean_address,
    clean_display_name,
    clean_email,
    clean_phone,
    clean_sender,
    display,
)


@pytest.mark.parametrize(
    ("typed", "stored"),
    [
        ("ada@example.com", "ada@example.com"),
        (" ada@example.com ", "ada@example.com"),
        ("Ada.Lovelace+x@Example.COM", "Ada.Lovelace+x@example.com"),
        ("Postmaster@example.com", "Postmaster@example.com"),
        ("o'hara_1@mail.example.co.uk", "o'hara_1@mail.example.co.uk"),
        ("ada@acme.test", "ada@acme.test"),
        ("ada@acme.localhost", "ada@acme.localhost"),
        ("ada@acme.example", "ada@acme.example"),
        ("ada@münchen.de", "ada@xn--mnchen-3ya.de"),
        ("ada@XN--MNCHEN-3YA.de", "ada@xn--mnchen-3ya.de"),
        ("ada@straße.de", "ada@xn--strae-oqa.de"),
        ("a@pаypal.com", "a@xn--pypal-4ve.com"),
        ("ada@ｅｘａｍｐｌｅ。com", "ada@example.com"),
    ],
)
def test_an_address_has_one_spelling(typed, stored):
    assert clean_email(typed) == stored
    assert clean_email(stored) == stored


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "ada",
        "@example.com",
        "ada@",
        "ada@localhost",
        "ada@example",
        "ada@test",
        "ada@1.2.3.4",
        "ada@[127.0.0.1]",
        "ada@example.com.",
        "ada@-example.com",
        "ada@exa_mple.com",
        "ada@mail.invalid",
        "ada@@example.com",
        "a@b@example.com",
        "a@y.io,v@z.io",
        "a@y.io;v@z.io",
        "a@y.io v@z.io",
        "Ada <ada@example.com>",
        "<ada@example.com>",
        '"b@y.io" <v@z.io>',
        '"a b"@example.com',
        '"ada"@example.com',
        "ada(comment)@example.com",
        "a\\d@example.com",
        "jürgen@example.com",
        "аda@example.com",
        "a%b@example.com",
        "=?utf-8?q?ceo=40bank.test?=@example.com",
        "host!ada@example.com",
        "ada..l@example.com",
        ".ada@example.com",
        "ada@exam ple.com",
        "ada@example.com\r\nBcc: v@z.io",
        "ada\n@example.com",
        "ada@example.com\x00",
        "ada\x7f@example.com",
        "ada\x85@example.com",
        "ada@exa\u2028mple.com",
        "ada\ud800@example.com",
        "a" * 65 + "@example.com",
        "a@" + ".".join(["b" * 60] * 5),
        "ada＠example.com",
    ],
)
def test_anything_but_one_plain_address_is_refused(typed):
    with pytest.raises(InvalidAddress) as raised:
        clean_email(typed)
    assert str(raised.value)[0].isupper()


def test_an_address_may_have_254_characters_and_no_more():
    def of_length(length: int) -> str:
        head = "a" * 64 + "@" + "b" * 60 + "." + "c" * 60 + "." + "d" * 60 + "."
        return head + "e" * (length - len(head) - 4) + ".com"

    assert len(clean_email(of_length(254))) == 254
    with pytest.raises(InvalidAddress):
        clean_email(of_length(255))


@pytest.mark.parametrize(
    ("typed", "region", "stored"),
    [
        ("+49 30 901820", None, "+4930901820"),
        ("030 / 901 820", "DE", "+4930901820"),
        ("(0)30-901.820", "DE", "+4930901820"),
        ("+98 912 345 6789", None, "+989123456789"),
        ("۰۹۱۲۳۴۵۶۷۸۹", "IR", "+989123456789"),
        ("+1 212 555 2368", None, "+12125552368"),
        ("00 49 30 901820", "DE", "+4930901820"),
    ],
)
def test_a_phone_number_is_stored_in_e164(typed, region, stored):
    assert clean_phone(typed, region) == stored


@pytest.mark.parametrize(
    ("typed", "region"),
    [
        ("", None),
        ("030 901820", None),
        ("+49", None),
        ("+1 555 0100", None),
        ("+999 12345678", None),
        ("+49 30 901820 ext 5", None),
        ("+49 30 901820;ext=5", None),
        ("+1 212 KL5 2368", None),
        ("tel:+4930901820", None),
        ("+4930901820\r\n", None),
        ("+4930901820\x00", None),
        ("+49 900 1 234567", None),
        ("+1 900 253 0000", None),
        ("+44 909 879 0000", None),
        ("1" * 300, "DE"),
    ],
)
def test_a_phone_number_that_cannot_be_sent_to_is_refused(typed, region):
    with pytest.raises(InvalidAddress):
        clean_phone(typed, region)


@pytest.mark.parametrize(
    ("typed", "stored"),
    [
        ("Ada", "Ada"),
        ("  Ada \u00a0  Lovelace ", "Ada Lovelace"),
        ("Müller, نوبت & 会社", "Müller, نوبت & 会社"),
        ("", ""),
        ("x" * 300, "x" * 100),
    ],
)
def test_a_display_name_is_tidied_and_cut(typed, stored):
    assert clean_display_name(typed) == stored


@pytest.mark.parametrize(
    "typed",
    [
        "Ada\r\nBcc: v@z.io",
        "Ada\n",
        "Ada\x00",
        "Ada\x1b[31m",
        "Ada\x85",
        "A\u202eda",
        "A\u2028da",
        "\ud800",
        "=?utf-8?q?a?=",
    ],
)
def test_a_display_name_that_hides_something_is_refused(typed):
    with pytest.raises(InvalidAddress):
        clean_display_name(typed)


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        ("ada@example.com", "ada@example.com"),
        ("ada@xn--mnchen-3ya.de", "ada@münchen.de"),
        ("ada@xn--80a1acny.xn--p1ai", "ada@почта.рф"),
        ("ada@xn--r8jz45g.jp", "ada@例え.jp"),
        ("a@xn--pypal-4ve.com", "a@xn--pypal-4ve.com"),
        ("a@xn--80ak6aa92e.com", "a@xn--80ak6aa92e.com"),
        ("a@xn--zzzzzz-.com", "a@xn--zzzzzz-.com"),
    ],
)
def test_a_domain_that_may_imitate_another_is_shown_in_punycode(stored, shown):
    assert display(stored) == shown


@pytest.mark.parametrize(
    ("channel", "typed", "stored"),
    [
        ("email", "Ada@Example.com", "Ada@example.com"),
        ("sms", "030 901820", "+4930901820"),
        ("voice", "+49 30 901820", "+4930901820"),
        ("chat", " general ", "general"),
    ],
)
def test_each_channel_stores_its_own_kind_of_address(channel, typed, stored):
    assert clean_address(channel, typed, region="DE") == stored


@pytest.mark.parametrize("sender", ["Acme", "Acme 24", "+4930901820", "12345"])
def test_a_text_message_comes_from_a_number_or_a_short_name(sender):
    assert clean_sender("sms", sender) == sender


@pytest.mark.parametrize("sender", ["", "12", "Acme\r\n", "a name too long", "Ac<me>", "12 34", "Acme\n"])
def test_a_text_message_comes_from_nothing_else(sender):
    with pytest.raises(InvalidAddress):
        clean_sender("sms", sender)
