"""Faults on purpose, and the count of what they cost: `make faults`.

A process accepts messages and notes each before and after the call; providers note what they were given; a checker
joins the two. What the product says of itself is compared with that, and never believed.
"""
