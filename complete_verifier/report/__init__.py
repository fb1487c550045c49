"""The report of a sweep: one HTML file with plots and tables that needs nothing but a browser.

The plots are drawn here as plain SVG, so that a report needs no plotting library and its colours follow the page.
"""
