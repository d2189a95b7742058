"""Runs over several devices: systems are dealt to them, each takes the steps of its own."""
