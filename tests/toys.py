"""Models of no app, for tests of what every tenant's model does."""

from django.db import connection, models
from django.test.utils import isolate_apps

from tenants.context import tenant_context
from tenants.models import Tenant
from tenants.scoping import TenantModel

with isolate_apps("tests"):

    class Reader(models.Model):  # noqa: DJ008
        """A model without the tenants' base, as those of Django's own apps."""

        name = models.CharField(max_length=50)

        class Meta:
            app_label = "tests"

    class Shelf(TenantModel):
        name = models.CharField(max_length=50)
        keeper = models.ForeignKey(Reader, models.SET_NULL, null=True, related_name="+")

        class Meta:
            app_label = "tests"

    class Book(TenantModel):
        shelf = models.ForeignKey(Shelf, models.CASCADE, related_name="books")
        title = models.CharField(max_length=50)
        readers = models.ManyToManyField(Reader, related_name="+")

        class Meta:
            app_label = "tests"


def make_tables(*tenants: Tenant) -> None:
    """The toys' tables in these tenants' schemas, inside the test's transaction."""
    for tenant in tenants:
        with tenant_context(tenant), connection.schema_editor() as editor:
            editor.create_model(Reader)
            editor.create_model(Shelf)
            editor.create_model(Book)


def take_it(message):
    """A handler that takes everything."""
    return True
