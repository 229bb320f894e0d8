from unfold.sites import UnfoldAdminSite

tenant_site = UnfoldAdminSite(name="admin")
platform_site = UnfoldAdminSite(name="admin")
