"""Addresses in one spelling, with nothing hidden in them."""

import pytest

from notifications.channels.addresses import (
    InvalidAddress,
    clean_address,
    clean_display_name,
    clean_email,
    clean_phone,
    clean_sender,
    clean_url,
    display,
    read_url,
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
        ("webhook", "HTTPS://Hooks.Example.com/Notify", "https://hooks.example.com/Notify"),
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


@pytest.mark.parametrize("sender", ["acme-notifications", "https://acme.example/", "hello@acme.test", "Müller & Co"])
def test_a_webhook_comes_from_any_name(sender):
    assert clean_sender("webhook", sender) == sender


@pytest.mark.parametrize("sender", ["", "  ", "a\r\nb", "a\x00", "a\u202eb", "x" * 101])
def test_a_webhook_does_not_come_from_nobody_or_from_what_hides_something(sender):
    with pytest.raises(InvalidAddress):
        clean_sender("webhook", sender)


@pytest.mark.parametrize(
    ("typed", "stored"),
    [
        ("https://hooks.example.com/notify", "https://hooks.example.com/notify"),
        (" https://hooks.example.com ", "https://hooks.example.com/"),
        ("HTTPS://Hooks.Example.COM:443/A/%7Eb?x=1&y=?/", "https://hooks.example.com/A/%7Eb?x=1&y=?/"),
        ("https://hooks.example.com?x", "https://hooks.example.com/?x"),
        ("https://hooks.example.com.:8443/", "https://hooks.example.com:8443/"),
        ("http://hooks.example.com:80/", "http://hooks.example.com/"),
        ("http://hooks.example.com:443/", "http://hooks.example.com:443/"),
        ("https://münchen.de/", "https://xn--mnchen-3ya.de/"),
        ("https://straße.de/", "https://xn--strae-oqa.de/"),
        ("https://ｅｘａｍｐｌｅ。com/", "https://example.com/"),
        ("https://8.8.8.8/", "https://8.8.8.8/"),
        ("https://[2A00:1450:4001:0::1A]:8443/x", "https://[2a00:1450:4001::1a]:8443/x"),
        ("https://hooks.example.com/a@b:c;d=(e)!$&'*+,", "https://hooks.example.com/a@b:c;d=(e)!$&'*+,"),
        ("https://hooks.example.com/../a//b/.", "https://hooks.example.com/../a//b/."),
    ],
)
def test_a_url_has_one_spelling(typed, stored):
    assert clean_url(typed) == stored
    assert clean_url(stored) == stored


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "https://",
        "https:///x",
        "hooks.example.com/x",
        "//hooks.example.com/x",
        "ftp://hooks.example.com/",
        "file:///etc/passwd",
        "gopher://127.0.0.1:6379/_",
        "javascript:alert(1)",
        "httpſ://hooks.example.com/",
        "https:hooks.example.com/",
        "https:/hooks.example.com/",
        "https://user@hooks.example.com/",
        "https://user:hush@hooks.example.com/",
        "https://hooks.example.com@evil.test/",
        "https://hooks.example.com\\@evil.test/",
        "https://hooks.example.com%40evil.test/",
        "https://evil.test\\.example.com/",
        "https://hooks.example.com/#part",
        "https://hooks.example.com#@evil.test/",
        "https://hooks.example.com:0/",
        "https://hooks.example.com:65536/",
        "https://hooks.example.com:/",
        "https://hooks.example.com:44３/",
        "https://hooks.example.com:-1/",
        "https://hooks.exa mple.com/",
        "https://hooks.example.com/a b",
        "https://hooks.example.com/a\tb",
        "https://hooks.example.com/\r\nX-Forged: 1",
        "https://hooks.example.com/\x00",
        "https://hooks.example.com/\u2028",
        "https://hooks.example.com/\ud800",
        "https://hooks.example.com/ü",
        "https://hooks.example.com/%",
        "https://hooks.example.com/%zz",
        "https://hooks.example.com/<x>",
        "https://hooks.example.com/{x}",
        'https://hooks.example.com/"',
        "https://hooks..example.com/",
        "https://-hooks.example.com/",
        "https://2130706433/",
        "https://0x7f.1/",
        "https://127.1/",
        "https://0177.0.0.1/",
        "https://①②⑦.⓪.⓪.①/",
        "https://127。0。0。1/",
        "https://[127.0.0.1]/",
        "https://[::1/",
        "https://[fe80::1%25eth0]/",
        "https://[::1]x/",
        "https://::1/",
        "https://hooks.example.com/" + "a" * 2000,
        "https://" + "ü" * 1000 + ".com/",
        "https://[" + "0" * 100_000 + "]/",
    ],
)
def test_anything_but_one_plain_url_is_refused(typed):
    with pytest.raises(InvalidAddress) as raised:
        clean_url(typed)
    assert str(raised.value)[0].isupper()
    assert "hush" not in str(raised.value)


@pytest.mark.parametrize("typed", ["https://user:hush@hooks.example.com/", "https://hooks.example.com@evil.test/"])
def test_a_user_name_in_a_url_is_told_to_be_removed(typed):
    with pytest.raises(InvalidAddress, match="Remove the user name"):
        clean_url(typed)


def test_a_url_may_have_2000_characters_and_no_more():
    head = "https://hooks.example.com/"
    assert len(clean_url(head + "a" * (2000 - len(head)))) == 2000
    with pytest.raises(InvalidAddress):
        clean_url(head + "a" * (2001 - len(head)))
    with pytest.raises(InvalidAddress):
        clean_url("https://münchen.example/" + "a" * 1976)


def test_a_url_is_taken_apart_as_it_is_connected_to():
    address = read_url("https://[::1]:8443/a?b")
    assert (address.host, address.port, address.target) == ("::1", 8443, "/a?b")
    assert address.authority == "[::1]:8443"
    assert read_url("https://hooks.example.com").authority == "hooks.example.com"
