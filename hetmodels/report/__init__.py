"""The report of a run: one HTML file that opens without a network.

`assets/3Dmol-min.js` is 3Dmol.js 2.5.5, unchanged, under its own licence beside it.
"""
