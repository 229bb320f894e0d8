"""Settings come from the environment: typed, required where they must be, secrets from files too."""

import re
import traceback
from pathlib import Path

import pytest

from services import env
from services.env import SettingsError

ROOT = Path(__file__).parents[2]


def test_a_missing_secret_names_itself_and_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANTED", raising=False)
    with pytest.raises(SettingsError, match="WANTED is not set: set it, or name a file that holds it in WANTED_FILE"):
        env.secret("WANTED")


def test_a_secret_is_read_from_the_file_that_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s3cret\n")
    monkeypatch.setenv("WANTED_FILE", str(tmp_path / "secret"))
    assert env.secret("WANTED") == "s3cret"


def test_a_secret_itself_goes_before_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANTED", "given")
    monkeypatch.setenv("WANTED_FILE", str(tmp_path / "absent"))
    assert env.secret("WANTED") == "given"


def test_a_file_that_cannot_be_read_is_said_with_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANTED_FILE", str(tmp_path / "absent"))
    with pytest.raises(SettingsError, match="WANTED_FILE cannot be read: No such file"):
        env.secret("WANTED")


@pytest.mark.parametrize(("text", "value"), [("1", True), ("on", True), ("False", False), ("0", False), ("", False)])
def test_flags_are_words_for_yes_and_no(monkeypatch: pytest.MonkeyPatch, text: str, value: bool) -> None:
    monkeypatch.setenv("WANTED", text)
    assert env.flag("WANTED", not value) is value


@pytest.mark.parametrize(
    ("reader", "text"),
    [
        (lambda name: env.flag(name, False), "perhaps"),
        (lambda name: env.integer(name, 1), "ten"),
        (lambda name: env.integers(name, "1,2"), "1,two"),
        (lambda name: env.choice(name, "a", ["a", "b"]), "c"),
        (env.networks, "10.0.0.1/8"),
        (env.fernet_keys, "not a key"),
        (lambda name: env.mailbox(name, ""), "nobody"),
        (env.secret_words, " , "),
        (env.database, "mysql://localhost/x"),
        (env.database, "postgresql://localhost"),
    ],
)
def test_what_cannot_be_read_names_the_variable(monkeypatch: pytest.MonkeyPatch, reader: object, text: str) -> None:
    monkeypatch.setenv("WANTED", text)
    with pytest.raises(SettingsError, match="WANTED"):
        reader("WANTED")  # type: ignore[operator]


def test_a_database_address_is_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANTED", "postgresql://us%40er:p%2Fw@db:6543/name?sslmode=require")
    assert env.database("WANTED") == {
        "NAME": "name",
        "USER": "us@er",
        "PASSWORD": "p/w",
        "HOST": "db",
        "PORT": "6543",
        "OPTIONS": {"sslmode": "require"},
    }


@pytest.mark.parametrize(
    "password", ["hun/ter-2", "12/hunter-2", "p@ss/hunter-2", "hunter-2:/", "hunter-2[", "hun#ter-2", "hunter-2\u2100"]
)
def test_a_password_that_breaks_the_address_is_not_shown(monkeypatch: pytest.MonkeyPatch, password: str) -> None:
    monkeypatch.setenv("WANTED", f"postgresql://user:{password}@db:6543/name")
    with pytest.raises(SettingsError, match="WANTED cannot be read: percent-encode") as raised:
        env.database("WANTED")
    shown = "".join(traceback.format_exception(raised.value))
    assert "hun" not in shown
    assert "ter-2" not in shown


def test_a_list_of_delays_may_be_written_as_json_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANTED", "[60, 300]")
    assert env.integers("WANTED", "1") == [60, 300]


def test_the_example_lists_every_setting_and_no_other() -> None:
    read = set()
    for source in (ROOT / "services").glob("*.py"):
        code = source.read_text()
        read |= set(re.findall(r'env\.\w+\(\s*"([A-Z_]+)"', code))
        read |= set(re.findall(r'\bport\("([A-Z_]+)"', code))
    listed = set(re.findall(r"^([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert listed == read
