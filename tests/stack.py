"""The servers that the tests run on: those of the environment, else embedded ones that end with the run.

Loaded as a plugin (`-p tests.stack`), because Django's settings are read before any conftest.
"""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("SECRET_KEY", "only-for-tests-0000000000000000000000000000000000000000")
os.environ.setdefault("FIELD_ENCRYPTION_KEYS", "b25seS1mb3ItdGVzdHMtMDAwMDAwMDAwMDAwMDAwMDA=")
os.environ.setdefault("BASE_DOMAIN", "carillon.test")
os.environ.setdefault("HTTPS", "0")
os.environ.setdefault("NOTIFY_PRIVATE_NETWORKS", "127.0.0.0/8,::1/128")
os.environ.setdefault("NOTIFY_SMS_PROVIDER", "console")
os.environ.setdefault("LOG_LEVEL", "WARNING")


_folder = Path(tempfile.mkdtemp(prefix="carillon-tests-"))
_folder.chmod(0o711)
atexit.register(shutil.rmtree, _folder, ignore_errors=True)
(_folder / "static").mkdir()
os.environ.setdefault("STATIC_ROOT", str(_folder / "static"))

if "DATABASE_URL" not in os.environ or "REDIS_URL" not in os.environ:
    from services.embedded import Servers

    servers = Servers(_folder, durable=False)
    atexit.register(servers.stop)
    for _name, _value in servers.environment.items():
        os.environ.setdefault(_name, _value)
