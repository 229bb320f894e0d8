"""`make bench`: what the service does a second, beside what else a Django team would use, in the same run.

Each figure comes from real worker processes, PostgreSQL that waits for its disk, and an SMTP server. Ratios from
one run can be compared; absolute figures from two machines cannot.
"""
