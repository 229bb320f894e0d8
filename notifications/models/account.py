"""Accounts with providers: whose credentials a message leaves with."""

from collections.abc import Callable
from functools import partial
from typing import Any

from django.conf import settings as django_settings
from django.core.exceptions import ValidationError
from django.db import models

from notifications import handlers, vault
from notifications.channels.addresses import InvalidAddress, clean_display_name, clean_email, clean_sender
from notifications.channels.registry import secret_settings
from notifications.models.choices import NotificationChannel
from notifications.models.fields import one_of, uuid_key
from tenants.connection import connection
from tenants.scoping import TenantModel


class SettingsField(models.JSONField):
    """A JSON object that never reaches the database with a secret in it."""

    def get_prep_value(self, value: Any) -> Any:
        """The value as stored.

        Raises:
            ValueError: it holds a secret; only `Account.save` seals those.
        """
        if isinstance(value, dict) and vault.split(value, secret_settings())[1]:
            raise ValueError("settings hold a secret: save the account itself, so that it is sealed")
        return super().get_prep_value(value)


class Account(TenantModel):
    """Credentials with one provider, for one kind of message.

    Give secrets inside `settings`, where the provider's documentation has them
    (`settings={"smtp": {"host": …, "password": …}}`). Saving moves them, encrypted, to `sealed`: they can
    be replaced but are never shown again. `get_setting` puts both together for the adapter.
    """

    EMAIL = NotificationChannel.EMAIL
    SMS = NotificationChannel.SMS
    WHATSAPP = NotificationChannel.WHATSAPP
    PUSH = NotificationChannel.PUSH
    IN_APP = NotificationChannel.IN_APP
    SLACK = NotificationChannel.SLACK
    TEAMS = NotificationChannel.TEAMS
    VOICE = NotificationChannel.VOICE
    WEBHOOK = NotificationChannel.WEBHOOK

    id = uuid_key()
    name = models.CharField(max_length=100, blank=True)
    kind = models.CharField(max_length=10, choices=NotificationChannel)
    provider = models.CharField(max_length=30, blank=True, help_text="Empty: what the settings name.")
    domain = models.CharField(max_length=253, blank=True, help_text="The e-mail domain, or the phone number.")
    domain_verified_at = models.DateTimeField(
        null=True, blank=True, editable=False, help_text="Since when any address at the domain may be a sender."
    )
    group = models.ForeignKey("auth.Group", models.SET_NULL, null=True, blank=True, related_name="+")
    settings = SettingsField(default=dict, blank=True)
    sealed = models.TextField(blank=True, editable=False)
    is_active = models.BooleanField(default=True)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ("kind", "name")
        constraints = [
            models.CheckConstraint(condition=one_of("kind", NotificationChannel), name="account_kind_known"),
        ]

    def __str__(self) -> str:
        return self.name or f"{self.get_kind_display()} {self.domain or self.provider}".strip()

    def __repr__(self) -> str:
        return f"<Account {self.pk} {self.kind} {self.provider}>"

    @property
    def provider_name(self) -> str:
        """The adapter's name: given, else what `settings` has an entry for, else the tenant's or platform's default."""
        if self.provider:
            return self.provider
        if isinstance(named := self.settings.get(f"{self.kind}_provider"), dict):
            return str(named.get("provider", ""))
        if "smtp" in self.settings:
            return "smtp"
        return self._default_provider()

    def _default_provider(self) -> str:
        defaults = {
            self.EMAIL: ("email_provider", django_settings.NOTIFY_EMAIL_PROVIDER),
            self.SMS: ("sms_provider", django_settings.NOTIFY_SMS_PROVIDER),
        }
        field, fallback = defaults.get(NotificationChannel(self.kind), ("", ""))
        # The platform's account, seen from inside a tenant, does not follow the tenant's choice.
        if field and getattr(self._state, "schema", connection.schema_name) == connection.schema_name:
            return CommunicationSettings.objects.values_list(field, flat=True).first() or fallback
        return fallback

    def get_setting(self, key: str, default: Any = None) -> Any:
        """One entry of the settings, secrets included."""
        return self.all_settings().get(key, default)

    def all_settings(self) -> dict[str, Any]:
        """The settings with their secrets, decrypted. Do not log, show or store the result."""
        if not self.sealed:
            return dict(self.settings)
        return vault.join(self.settings, vault.unseal(self.sealed, purpose=self._purpose))

    def adapter_settings(self) -> dict[str, Any]:
        """What the provider's adapter is built from: its own entry of the settings, else all of them."""
        everything = self.all_settings()
        entries = (everything.get(self.provider_name), everything.get(f"{self.kind}_provider"))
        return next((entry for entry in entries if isinstance(entry, dict)), everything)

    @property
    def _purpose(self) -> str:
        # A sealed value moved to another tenant, row or column must not open there.
        schema_name = getattr(self._state, "schema", connection.schema_name)
        return f"{schema_name}/{self._meta.db_table}/{self.pk}/settings"

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Store the account.

        Secrets found in `settings` replace the sealed ones of the same name; those whose entry is gone from the
        settings, or that another provider was given, are dropped. Another domain has to be verified anew.

        Raises:
            SealBroken: a secret is to be added to others that no key opens.
        """
        stored = type(self)._base_manager.filter(pk=self.pk).first()
        written = kwargs.get("update_fields")
        changed = {"sealed"} if self._seal(stored) else set()
        if stored and (written is None or "domain" in written) and stored.domain.lower() != self.domain.lower():
            self.domain_verified_at = None
            changed.add("domain_verified_at")
        if written is not None:
            kwargs["update_fields"] = {*written, *changed}
        super().save(*args, **kwargs)

    def _seal(self, stored: "Account | None") -> bool:
        """Bring `sealed` in step with `settings` and the provider; whether it changed."""
        also = secret_settings()
        self.settings, given = vault.split(self.settings, also)
        another = stored is not None and stored.provider_name != self.provider_name
        if not given and not another and (stored is None or stored.settings == self.settings):
            return False
        try:
            kept = vault.unseal(self.sealed, purpose=self._purpose) if self.sealed else {}
        except vault.SealBroken:
            if given:
                raise
            return False  # It opens for nobody, so that nothing leaves with it either.
        secrets = vault.still_placed(kept, self.settings, also)
        if another:
            secrets = {name: item for name, item in secrets.items() if name == self.provider_name}
        secrets = vault.without_empty(vault.join(secrets, given))
        if secrets == kept:
            return False
        self.sealed = vault.seal(secrets, purpose=self._purpose) if secrets else ""
        return True


class Outbox(TenantModel):
    """A sender's address on an account."""

    id = uuid_key()
    account = models.ForeignKey(Account, models.PROTECT, related_name="outboxes")
    group = models.ForeignKey("auth.Group", models.SET_NULL, null=True, blank=True, related_name="+")
    address = models.CharField(max_length=254, help_text="The sender's e-mail address or phone number.")
    name = models.CharField(max_length=100, blank=True, help_text="The sender's name as recipients see it.")
    reply_to = models.CharField(max_length=254, blank=True)
    handler = models.CharField(max_length=200, blank=True, help_text="A registered handler, instead of the provider.")
    rate_limit = models.PositiveIntegerField(
        null=True, blank=True, help_text="The most messages an hour; empty means no limit of its own."
    )
    priority = models.PositiveSmallIntegerField(default=100, help_text="The lowest number is used first.")
    is_active = models.BooleanField(default=True)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ("priority", "address")
        verbose_name_plural = "outboxes"
        constraints = [
            models.UniqueConstraint(fields=["account", "address"], name="outbox_address_once_an_account"),
            models.CheckConstraint(
                condition=models.Q(rate_limit__isnull=True) | models.Q(rate_limit__gt=0),
                name="outbox_rate_limit_positive",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.name} <{self.address}>" if self.name else self.address

    def clean(self) -> None:
        """Check the handler, and what recipients see.

        Raises:
            ValidationError: naming the field and the remedy.
        """
        if self.handler and self.handler not in handlers.names():
            raise ValidationError({"handler": "This handler is not registered; choose one that the platform offers."})
        if self.account_id:
            self._clean("address", partial(clean_sender, self.account.kind))
        self._clean("name", clean_display_name)
        if self.reply_to:
            self._clean("reply_to", clean_email)

    def _clean(self, field: str, cleaned: Callable[[str], str]) -> None:
        try:
            setattr(self, field, cleaned(getattr(self, field)))
        except InvalidAddress as error:
            raise ValidationError({field: str(error)}) from error

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Store the outbox; what waits for it is looked at again, as its limit may be another now.

        Raises:
            ValidationError: the address or the handler is not allowed.
        """
        from notifications import routing

        self.clean()
        known = not self._state.adding
        super().save(*args, **kwargs)
        if known:
            routing.look_again(self)

    def check_rate_limit(self) -> bool:
        """Whether the outbox may send now; only looks. Whoever sends takes a permit, which may be another's by then."""
        from notifications import routing
        from notifications.dispatch import limiter

        limit = routing.limit_of(self, routing.scope_of(self))
        return limit is None or limiter.free_now(limit) > 0


class CommunicationSettings(TenantModel):
    """A tenant's defaults: one row a schema, which always exists."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1, editable=False)
    default_channel = models.CharField(max_length=10, choices=NotificationChannel, default=NotificationChannel.EMAIL)
    default_language = models.CharField(max_length=35, default="en")
    time_zone = models.CharField(max_length=64, default="UTC")
    phone_region = models.CharField(
        max_length=2, blank=True, help_text="The country of phone numbers that are given without its code, such as DE."
    )
    email_provider = models.CharField(max_length=30, blank=True)
    sms_provider = models.CharField(max_length=30, blank=True)
    email_from_address = models.CharField(max_length=254, blank=True)
    email_from_name = models.CharField(max_length=100, blank=True)
    failover = models.BooleanField(
        default=False,
        db_default=False,
        help_text="When a provider certainly did not take a message, try the next outbox of the channel, by priority.",
    )
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        verbose_name = verbose_name_plural = "communication settings"
        constraints = [models.CheckConstraint(condition=models.Q(id=1), name="communication_settings_one_row")]

    def __str__(self) -> str:
        return "Communication settings"

    def delete(self, *_: Any, **__: Any) -> tuple[int, dict[str, int]]:
        """Refuse: the row always exists.

        Raises:
            ValidationError: always.
        """
        raise ValidationError("The communication settings can be changed but not deleted.")
