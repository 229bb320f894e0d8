"""The platform's own host: the operators' admin."""

from django.urls import URLPattern, URLResolver, path
from django.views.generic import RedirectView

from notifications.admin import platform_site

urlpatterns: list[URLPattern | URLResolver] = [
    path("", RedirectView.as_view(pattern_name="admin:index")),
    path("admin/notify/", RedirectView.as_view(url="/admin/notifications/")),
    path("admin/", platform_site.urls),
]
