"""The filters that templates may use: all take time linear in their input, and none multiplies it.

Left out on purpose: what pads or formats to any width (ljust, center, stringformat), what switches escaping off
(safe), what parses HTML or normalises Unicode with quadratic worst cases (urlize, truncate…_html, slugify), and what
escapes over and over (addslashes, force_escape). Django's own filter is used wherever it passes these tests; each
does what Django's documentation says of its name, and is called with a value, an argument and the render's context.
"""

import re
import unicodedata
from collections.abc import Callable
from datetime import date, datetime, time
from typing import Any
from urllib.parse import quote

from django.template import defaultfilters as stock
from django.utils import dateformat, timezone
from django.utils.formats import get_format
from django.utils.html import conditional_escape
from django.utils.safestring import SafeString

from .budget import ELEMENT
from .expressions import MAX_NUMBER, Filter, Surroundings, Takes, plain

MAX_DATE_FORMAT = 100  # characters
MAX_DECIMALS = 20

DATE_COST = 400  # in characters of work; looking up names of months and zones is slow
# Anything else that looks like a setting would be read as an attribute of Django's format modules.
DATE_FORMATS = {
    "DATE_FORMAT",
    "DATETIME_FORMAT",
    "SHORT_DATE_FORMAT",
    "SHORT_DATETIME_FORMAT",
    "YEAR_MONTH_FORMAT",
    "MONTH_DAY_FORMAT",
    "TIME_FORMAT",
}

TAG = re.compile(r"</?[a-zA-Z!?][^<>]*>")
DECIMALS = re.compile(r"(-?[0-9]{0,2})([gu]{0,2})")

FILTERS: dict[str, Filter] = {}

type Call = Callable[[Any, Any, Surroundings], Any]


def offered(
    takes: Takes = Takes.NOTHING, *, optional: bool = False, price: int = 1, base: int = 0, keeps_safe: bool = False
) -> Callable[[Call], Call]:
    """Offer a function to templates, under its own name without the last underscore."""

    def offer(call: Call) -> Call:
        name = call.__name__.rstrip("_")
        FILTERS[name] = Filter(name, call, takes, optional, price, base, keeps_safe)
        return call

    return offer


def number(value: Any) -> Any:
    """A value that is a number or short enough to be one. Raises ValueError otherwise."""
    if isinstance(value, (int, float)) or (isinstance(value, str) and len(value) <= MAX_NUMBER):
        return value
    raise ValueError


# Fallbacks


@offered(Takes.ANYTHING, price=0)
def default(value: Any, argument: Any, _: Surroundings) -> Any:
    return value or argument


@offered(Takes.ANYTHING, price=0)
def default_if_none(value: Any, argument: Any, _: Surroundings) -> Any:
    return argument if value is None else value


@offered(Takes.TEXT, optional=True, price=0, base=128)
def yesno(value: Any, argument: str | None, _: Surroundings) -> Any:
    return stock.yesno(value, argument)


# Text


@offered(keeps_safe=True)
def lower(value: Any, _: None, __: Surroundings) -> str:
    return plain(value).lower()


@offered()
def upper(value: Any, _: None, __: Surroundings) -> str:
    return plain(value).upper()


@offered(keeps_safe=True, price=8)
def title(value: Any, _: None, __: Surroundings) -> str:
    return stock.title(plain(value))


@offered(keeps_safe=True)
def capfirst(value: Any, _: None, __: Surroundings) -> str:
    text = plain(value)
    return text[:1].upper() + text[1:]


@offered(Takes.TEXT)
def cut(value: Any, argument: str, context: Surroundings) -> str:
    text = plain(value)
    context.budget.search(text, argument)
    shorter = text.replace(argument, "")
    # Without its semicolons an escaped character is none any more.
    return SafeString(shorter) if isinstance(text, SafeString) and argument != ";" else shorter


@offered(Takes.SIZE, keeps_safe=True)
def truncatechars(value: Any, argument: int, _: Surroundings) -> str:
    text = plain(value)
    if argument <= 0 or len(text) <= argument:
        return text if argument > 0 else ""
    end = argument - 1
    # An accent is not parted from its letter.
    while end and unicodedata.combining(text[end]):
        end -= 1
    return f"{text[:end]}…"


@offered(Takes.SIZE, keeps_safe=True)
def truncatewords(value: Any, argument: int, _: Surroundings) -> str:
    words = plain(value).split(None, max(argument, 0))
    if argument <= 0 or len(words) <= argument:
        return " ".join(words) if argument > 0 else ""
    return " ".join(words[:argument]) + " …"


@offered(base=16)
def wordcount(value: Any, _: None, __: Surroundings) -> int:
    return len(plain(value).split())


# HTML


@offered(keeps_safe=True)
def escape(value: Any, _: None, __: Surroundings) -> str:
    return conditional_escape(plain(value))


@offered(keeps_safe=True, price=8)
def striptags(value: Any, _: None, __: Surroundings) -> str:
    return TAG.sub("", plain(value))


@offered(price=16, base=160)
def linebreaks(value: Any, _: None, context: Surroundings) -> str:
    return stock.linebreaks_filter(plain(value), autoescape=context.autoescape)


@offered(price=2, base=160)
def linebreaksbr(value: Any, _: None, context: Surroundings) -> str:
    return stock.linebreaksbr(plain(value), autoescape=context.autoescape)


@offered(Takes.TEXT, optional=True, price=16)
def urlencode(value: Any, argument: str | None, _: Surroundings) -> str:
    return quote(plain(value), safe="/" if argument is None else argument)


# Lists


@offered(price=0)
def length(value: Any, _: None, __: Surroundings) -> int:
    return len(value) if hasattr(value, "__len__") else 0


@offered(price=0)
def first(value: Any, _: None, __: Surroundings) -> Any:
    return value[0] if isinstance(value, (list, str)) and value else ""


@offered(price=0, keeps_safe=True)
def last(value: Any, _: None, __: Surroundings) -> Any:
    return value[-1] if isinstance(value, (list, str)) and value else ""


@offered(Takes.TEXT, keeps_safe=True)
def slice_(value: Any, argument: str, context: Surroundings) -> Any:
    if isinstance(value, list):
        context.budget.charge(len(value))
    bounds = [int(part) if part else None for part in argument.split(":")]
    return value[slice(*bounds)] if isinstance(value, (list, str)) else ""


@offered(Takes.TEXT, price=0)
def join(value: Any, argument: str, context: Surroundings) -> str:
    if not isinstance(value, list):
        return plain(value)
    context.budget.read(value)
    context.budget.charge(len(value) * (ELEMENT + len(argument)))
    if not context.autoescape:
        return argument.join(map(plain, value))
    return SafeString(conditional_escape(argument).join(conditional_escape(plain(part)) for part in value))


# Numbers


@offered(Takes.ANYTHING)
def add(value: Any, argument: Any, context: Surroundings) -> Any:
    try:
        return int(number(value)) + int(number(argument))
    except (ValueError, TypeError):
        context.budget.read(argument)
        return value + argument if isinstance(value, str) and isinstance(argument, str) else ""


@offered(Takes.SIZE, price=0)
def divisibleby(value: Any, argument: int, _: Surroundings) -> bool:
    return int(number(value)) % argument == 0


@offered(Takes.TEXT, optional=True, price=0, base=400)
def floatformat(value: Any, argument: str | None, _: Surroundings) -> str:
    shape = DECIMALS.fullmatch("-1" if argument is None else argument)
    if shape is None or (shape[1].strip("-") and abs(int(shape[1])) > MAX_DECIMALS):
        raise ValueError
    return stock.floatformat(number(value), shape[0])


@offered(Takes.TEXT, optional=True, price=0, base=32)
def pluralize(value: Any, argument: str | None, _: Surroundings) -> str:
    return stock.pluralize(number(value) if isinstance(value, str) else value, "s" if argument is None else argument)


# Dates


@offered(Takes.TEXT, optional=True, price=0, base=DATE_COST)
def date_(value: Any, argument: str | None, context: Surroundings) -> str:
    return format_date(moment(value), argument or "DATE_FORMAT", context)


@offered(Takes.TEXT, optional=True, price=0, base=DATE_COST)
def time_(value: Any, argument: str | None, context: Surroundings) -> str:
    return format_date(moment(value), argument or "TIME_FORMAT", context)


def moment(value: Any) -> datetime | time:
    """What an ISO 8601 text says, in the current time zone if it names one. Raises ValueError."""
    text = value.strip() if isinstance(value, str) and len(value) <= MAX_NUMBER else ""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return time.fromisoformat(text)
    return timezone.localtime(when) if when.tzinfo else when


def format_date(when: date | time, pattern: str, context: Surroundings) -> str:
    """A date or a time as text, in Django's date format or a format by name. Raises ValueError, BudgetExceeded."""
    if pattern in DATE_FORMATS:
        pattern = get_format(pattern)
    if len(pattern) > MAX_DATE_FORMAT:
        raise ValueError
    context.budget.charge(sum(map(str.isalpha, pattern)) * DATE_COST // 4)
    return dateformat.time_format(when, pattern) if isinstance(when, time) else dateformat.format(when, pattern)
