"""A tenant's own host: its admin."""

from django.urls import URLPattern, URLResolver, path
from django.views.generic import RedirectView

from notifications.admin import tenant_site

urlpatterns: list[URLPattern | URLResolver] = [
    path("", RedirectView.as_view(pattern_name="admin:index")),
    path("admin/notify/", RedirectView.as_view(url="/admin/notifications/")),
    path("admin/", tenant_site.urls),
]
