"""How long an account may let a hand-over take: no worker, lease or permit is held up for longer."""

import pytest

from notifications.channels import build
from notifications.channels.base import InvalidSettings

SERVER = {"host": "smtp.example.com"}


@pytest.mark.parametrize(("field", "most"), [("timeout", 60), ("data_timeout", 180)])
def test_a_time_limit_has_an_upper_bound_that_its_error_names(field, most):
    build("email", "smtp", {**SERVER, field: most})
    for too_long in (most + 1, most + 0.5, float("inf")):
        with pytest.raises(InvalidSettings) as raised:
            build("email", "smtp", {**SERVER, field: too_long})
        assert raised.value.field == field
        assert str(raised.value) == f"{field}: give a number of seconds up to {most}."
