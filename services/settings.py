"""Django's settings, all of them from the environment (`.env.example` lists them with their meaning)."""

from typing import Any

from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from services import env
from services.observability import LOGGING as LOGGING  # noqa: PLC0414 (a setting)
from services.observability import start_sentry

DEBUG = env.flag("DEBUG", False)
SECRET_KEY = env.secret("SECRET_KEY")
SECRET_KEY_FALLBACKS = list(filter(None, [env.secret("SECRET_KEY_FALLBACK", "")]))
FIELD_ENCRYPTION_KEYS = env.fernet_keys("FIELD_ENCRYPTION_KEYS")

# Hosts: the platform's own is BASE_DOMAIN, each tenant's one below it, or a domain of its own.
BASE_DOMAIN = env.text("BASE_DOMAIN", "localhost")
ALLOWED_HOSTS = [BASE_DOMAIN, f".{BASE_DOMAIN}", *env.words("ALLOWED_HOSTS")]
CSRF_TRUSTED_ORIGINS = env.words("CSRF_TRUSTED_ORIGINS")
USE_X_FORWARDED_HOST = False
BEHIND_TLS_PROXY = env.flag("BEHIND_TLS_PROXY", False)
if BEHIND_TLS_PROXY:
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")

# Apps: tenants and the ledger live in public; users, sessions and the admin in every schema.
EVERY_SCHEMA = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "django.contrib.sessions",
    "django.contrib.admin",
    "auditlog",
    "notifications",
]
SHARED_APPS = [
    "tenants",
    "notifications.dispatch",
    "unfold",
    "unfold.contrib.filters",
    "django_tenants",
    "django.contrib.postgres",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_rq",
    *EVERY_SCHEMA,
]
TENANT_APPS = EVERY_SCHEMA
INSTALLED_APPS = SHARED_APPS
TENANT_MODEL = "tenants.Tenant"
TENANT_DOMAIN_MODEL = "tenants.Domain"
DATABASE_ROUTERS = ["django_tenants.routers.TenantSyncRouter", "tenants.scoping.SameTenantRouter"]
ROOT_URLCONF = "services.urls_tenant"
PUBLIC_SCHEMA_URLCONF = "services.urls_public"
WSGI_APPLICATION = "services.web.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

MIDDLEWARE = [
    "services.health.ProbeMiddleware",
    "tenants.middleware.TenantMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.middleware.csp.ContentSecurityPolicyMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "services.audit.AuditMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

# Data: a search path does not survive a transaction-mode pooler, so connections are direct or psycopg's own pool.
_database = env.database("DATABASE_URL")
_database["OPTIONS"].setdefault("connect_timeout", env.integer("DATABASE_CONNECT_TIMEOUT", 5))
if _pool := env.integer("DATABASE_POOL_SIZE", 0):
    if _pool < 4:
        # A worker has up to three in use: its own, the writer's and that of what lands late.
        raise env.SettingsError(f"DATABASE_POOL_SIZE must be 0 (no pool) or at least 4, not {_pool}")
    _database["OPTIONS"]["pool"] = {"min_size": 1, "max_size": _pool, "timeout": 10}
DATABASES = {
    "default": {
        "ENGINE": "django_tenants.postgresql_backend",
        "CONN_MAX_AGE": 0 if _pool else 600,
        "CONN_HEALTH_CHECKS": True,
        **_database,
    }
}
REDIS_URL = env.secret("REDIS_URL")
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": REDIS_URL,
        "KEY_FUNCTION": "django_tenants.cache.make_key",
        "REVERSE_KEY_FUNCTION": "django_tenants.cache.reverse_key",
        "OPTIONS": {"socket_connect_timeout": 1, "socket_timeout": 2},
    }
}

# Queues carry bells only; a worker process serves exactly one of them.
QUEUES = ["urgent", "high", "default", "bulk", "inbound", "maintenance"]
RQ_QUEUES = {
    name: {
        "URL": REDIS_URL,
        "DEFAULT_TIMEOUT": -1,
        "DEFAULT_RESULT_TTL": 0,
        "SERIALIZER": "rq.serializers.JSONSerializer",
        # Short, because callers ring: an absent Redis must not hold them up. A worker lengthens its own.
        "REDIS_CLIENT_KWARGS": {
            "socket_connect_timeout": 0.5,
            "socket_timeout": 1,
            "health_check_interval": 30,
            # A connection that a restart has cut is made anew at once.
            "retry": Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
            **({} if REDIS_URL.startswith("unix:") else {"socket_keepalive": True}),
        },
    }
    for name in QUEUES
}
RQ = {"JOB_CLASS": "notifications.queues.JsonJob"}

# Sign-in: a cookie belongs to exactly one host.
PASSWORD_HASHERS = ["django.contrib.auth.hashers.ScryptPasswordHasher"]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = env.flag("HTTPS", not DEBUG)
SESSION_COOKIE_NAME = "__Host-sessionid" if SESSION_COOKIE_SECURE else "sessionid"
CSRF_COOKIE_NAME = "__Host-csrftoken" if SESSION_COOKIE_SECURE else "csrftoken"
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = CSRF_COOKIE_SAMESITE = "Lax"
SECURE_HSTS_SECONDS = 31_536_000 if SESSION_COOKIE_SECURE else 0
SECURE_CONTENT_TYPE_NOSNIFF = True
X_FRAME_OPTIONS = "DENY"
LOGIN_URL = "admin:login"
LOGIN_REDIRECT_URL = "admin:index"
SECURE_CSP = {
    "default-src": ["'self'"],
    # The admin's Alpine components evaluate their attributes.
    "script-src": ["'self'", "'unsafe-eval'", "'unsafe-inline'"],
    "style-src": ["'self'", "'unsafe-inline'"],
    "img-src": ["'self'", "data:"],
    "object-src": ["'none'"],
    "base-uri": ["'self'"],
    "form-action": ["'self'"],
    "frame-ancestors": ["'none'"],
}

# The admin's look: quiet greys and one blue, in light and in dark; everything is served from here.
UNFOLD = {
    "SITE_TITLE": "Carillon",
    "SITE_HEADER": "Carillon",
    "SITE_SYMBOL": "notifications",
    "SITE_FAVICONS": [
        {
            "rel": "icon",
            "type": "image/svg+xml",
            "href": "data:image/svg+xml,"
            "%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 24 24' fill='%232563eb'%3E"
            "%3Cpath d='M12 2a6 6 0 0 0-6 6v6l-2 3h16l-2-3V8a6 6 0 0 0-6-6zm-2 17a2 2 0 0 0 4 0z'/%3E%3C/svg%3E",
        }
    ],
    "SITE_URL": None,
    "SHOW_HISTORY": True,
    "SHOW_VIEW_ON_SITE": False,
    "BORDER_RADIUS": "6px",
    "COLORS": {
        "primary": {
            "50": "oklch(97% .014 254.604)",
            "100": "oklch(93.2% .032 255.585)",
            "200": "oklch(88.2% .059 254.128)",
            "300": "oklch(80.9% .105 251.813)",
            "400": "oklch(70.7% .165 254.624)",
            "500": "oklch(62.3% .188 259.815)",
            "600": "oklch(52% .19 260)",
            "700": "oklch(45% .18 262)",
            "800": "oklch(39% .15 264)",
            "900": "oklch(34% .12 266)",
            "950": "oklch(26% .09 268)",
        }
    },
    "SIDEBAR": {"show_search": False, "show_all_applications": False},
}

STATIC_URL = "/static/"
STATIC_ROOT = env.text("STATIC_ROOT", "build/static")
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}
WHITENOISE_USE_FINDERS = True

LANGUAGE_CODE = "en"
USE_I18N = True
USE_TZ = True
TIME_ZONE = "UTC"

# The platform's own e-mail: what provider `django` sends through.
EMAIL_BACKEND_PATH = env.text("EMAIL_BACKEND", "django.core.mail.backends.smtp.EmailBackend")
_email_options = (
    {
        "host": env.text("EMAIL_HOST", "localhost"),
        "port": env.integer("EMAIL_PORT", 587),
        "username": env.text("EMAIL_HOST_USER", ""),
        "password": env.secret("EMAIL_HOST_PASSWORD", ""),
        "use_tls": env.flag("EMAIL_USE_TLS", True),
        "use_ssl": env.flag("EMAIL_USE_SSL", False),
        "timeout": env.integer("EMAIL_TIMEOUT", 30),
    }
    if EMAIL_BACKEND_PATH.endswith("smtp.EmailBackend")
    else {}
)
MAILERS = {"default": {"BACKEND": EMAIL_BACKEND_PATH, "OPTIONS": _email_options}}
DEFAULT_FROM_EMAIL = env.mailbox("DEFAULT_FROM_EMAIL", "no-reply@example.com")

# Notifications. The platform's defaults; tenants set their own in the console.
NOTIFY_TENANT_MODEL = env.text("NOTIFY_TENANT_MODEL", "tenants.Tenant") or None
NOTIFY_USER_MODEL = env.text("NOTIFY_USER_MODEL", "") or None
NOTIFY_EMAIL_FROM_DEFAULT = env.mailbox("NOTIFY_EMAIL_FROM_DEFAULT", "no-reply@example.com")
NOTIFY_EMAIL_PROVIDER = env.text("NOTIFY_EMAIL_PROVIDER", "console" if DEBUG else "django")
NOTIFY_SMS_PROVIDER = env.text("NOTIFY_SMS_PROVIDER", "console" if DEBUG else "")
NOTIFY_SEND_IMMEDIATELY = env.flag("NOTIFY_SEND_IMMEDIATELY", True)
NOTIFY_DISPATCH_MODE = env.choice("NOTIFY_DISPATCH_MODE", "rq", ["rq", "db", "inline"])
NOTIFY_MAX_ATTEMPTS = env.integer("NOTIFY_MAX_ATTEMPTS", 5)
NOTIFY_RETRY_BACKOFF_SECONDS = env.integers("NOTIFY_RETRY_BACKOFF_SECONDS", "60,300,1800,7200")
NOTIFY_LOCK_TIMEOUT_SECONDS = env.integer("NOTIFY_LOCK_TIMEOUT_SECONDS", 60)
NOTIFY_EXPIRY_SECONDS = env.integer("NOTIFY_EXPIRY_SECONDS", 3 * 86_400)
NOTIFY_DAILY_QUOTA = env.integer("NOTIFY_DAILY_QUOTA", 0)
NOTIFY_URGENT_PER_MINUTE = env.integer("NOTIFY_URGENT_PER_MINUTE", 600)
NOTIFY_ALLOW_GLOBAL_TEMPLATE_FALLBACK = env.flag("NOTIFY_ALLOW_GLOBAL_TEMPLATE_FALLBACK", True)
NOTIFY_HANDLER_ALLOWLIST = env.words("NOTIFY_HANDLER_ALLOWLIST")
NOTIFY_PRIVATE_NETWORKS = env.networks("NOTIFY_PRIVATE_NETWORKS")
NOTIFICATION_SETTINGS: dict[str, Any] = {
    "DEFAULT_FROM_EMAIL": env.mailbox("NOTIFICATION_DEFAULT_FROM_EMAIL", "noreply@example.com"),
    "DEFAULT_SMS_FROM": env.text("NOTIFICATION_DEFAULT_SMS_FROM", "+1234567890"),
    "RATE_LIMIT_WINDOW": env.integer("NOTIFICATION_RATE_LIMIT_WINDOW", 3600),
    "MAX_RETRY_ATTEMPTS": env.integer("NOTIFICATION_MAX_RETRY_ATTEMPTS", 3),
    "PROCESSING_BATCH_SIZE": env.integer("NOTIFICATION_PROCESSING_BATCH_SIZE", 100),
}

SENTRY_DSN = env.secret("SENTRY_DSN", "")
start_sentry(SENTRY_DSN, environment=env.text("SENTRY_ENVIRONMENT", "production"))
